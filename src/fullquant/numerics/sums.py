"""When an integer kernel that adds two tensors rounds as the file says.

A file says rint((a * scale_a + b * scale_b) / scale), integers a and b counted from their zero points. A kernel (ONNX
Runtime's QLinearAdd) computes rint(a * ratio_a + b * ratio_b + zero_point) with float32 ratios scale_a / scale and
scale_b / scale. Where a ratio is no float32 number, each product is off by its last bit, and a sum that lies half-way
between two integers goes to one side always: with scales of 1, 1.125 and 1.5 times powers of two up to 4.8% of the
pairs (a, b), all by one step, all the same way (decision 0019).
"""

from __future__ import annotations


def rounds_alike(scale_a: float, scale_b: float, scale: float) -> bool:
    """Whether all half-way sums of the two tensors are rounded alike by kernel and file, for scales of few bits.

    scale = odd * 2**e, and likewise the others. Either both ratios are exact: odd divides odd_a and odd_b. Or no sum
    is half-way: 2 * (a * scale_a + b * scale_b) = (2 n + 1) * scale has no solution, because e <= min(e_a, e_b) leaves
    the left side with one factor of 2 more than the right one; every sum then is at least 1 / (2 odd) of a step away.
    """
    (odd_a, e_a), (odd_b, e_b), (odd, e) = _odd_part(scale_a), _odd_part(scale_b), _odd_part(scale)
    return (odd_a % odd == 0 and odd_b % odd == 0) or e <= min(e_a, e_b)


def _odd_part(number: float) -> tuple[int, int]:
    """(odd, e) with number = odd * 2**e."""
    numerator, denominator = float(number).as_integer_ratio()
    twos = (numerator & -numerator).bit_length() - 1
    return numerator >> twos, twos - (denominator.bit_length() - 1)
