"""Integer arithmetic of quantized networks: what a chip without floating point computes, exactly as it computes it.

A real factor r (a product and quotient of scales) is a fixed-point number: r = multiplier * 2**-shift with a multiplier
of 31 bits (Jacob et al. 2018, arXiv:1712.05877, section 2.2, equations 6 and 7). Two roundings are there:

- "nearest_even": the 64-bit product is rounded once, half-way values to even, as ONNX QuantizeLinear and Paddle's
  quantize_linear define it. A factor such as 2/3 has no exact multiplier; products that lie within its error of a
  half-way value count as half-way values, which they are wherever scales are short (decision 0005).
- "gemmlowp": the two roundings of gemmlowp and TensorFlow Lite, SaturatingRoundingDoublingHighMul to 32 bits, half-way
  values upward, and then RoundingDivideByPOT, half-way values away from zero.

Everything is NumPy and int64; whoever computes sums checks with `overflow` that 32 bits would have held them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fullquant.numerics.qparams import IntArray

Rounding = Literal["nearest_even", "gemmlowp"]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
_MULTIPLIER_BITS = 31
# A product of a 32-bit sum and a multiplier has at most 62 bits; shifted by more it is 0, whatever it was.
_LONGEST_SHIFT = 62


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """r = multiplier * 2**-shift, error at most half a unit of the multiplier.

    multiplier, shift: int64, one shape, () or (C,). multiplier in [2**30, 2**31), or 0 where r is below 2**-32; shift
    in [0, 62]. exact: no error anywhere.
    """

    multiplier: IntArray
    shift: IntArray
    exact: bool


def fixed_point(real: npt.ArrayLike) -> FixedPoint:
    """The fixed-point form of factors > 0, shape () or (C,). ValueError for others, and from 2**31 on."""
    array = np.asarray(real, dtype=np.float64)
    if not (np.all(np.isfinite(array)) and np.all(array > 0) and np.all(array < 2.0**31)):
        raise ValueError(f"{array} is no factor in (0, 2**31)")
    fraction, exponent = np.frexp(array)  # real = fraction * 2**exponent, fraction in [1/2, 1)
    exact = np.ldexp(fraction, _MULTIPLIER_BITS)
    multiplier = np.rint(exact).astype(np.int64)
    # Rounded up to 2**31 it is 2**30 at the next exponent.
    full = multiplier == 2**_MULTIPLIER_BITS
    multiplier = np.where(full, 2 ** (_MULTIPLIER_BITS - 1), multiplier)
    shift = _MULTIPLIER_BITS - (exponent.astype(np.int64) + full)
    nothing = shift > _LONGEST_SHIFT
    is_exact = bool(np.all((exact == np.rint(exact)) & ~nothing))
    return FixedPoint(np.where(nothing, 0, multiplier), np.where(nothing, _LONGEST_SHIFT, shift), is_exact)


def common_fixed_point(reals: Sequence[float]) -> tuple[list[int], int]:
    """([multipliers], shift): all factors at one shift, that of the largest, whose multiplier has 31 bits."""
    largest = fixed_point(max(abs(real) for real in reals))
    shift = int(largest.shift)
    return [round(real * 2.0**shift) for real in reals], shift


def round_shift(value: IntArray, shift: npt.ArrayLike, window: npt.ArrayLike = 0) -> IntArray:
    """value * 2**-shift to the nearest integer, half-way values to even; int64, shift in [0, 62].

    window: how far from half-way a value counts as half-way, in units of `value`; below 2**(shift - 1).
    """
    bits = np.asarray(shift, dtype=np.int64)
    whole = value >> bits
    # Twice the remainder against the divisor, so that a shift of 0 has no half.
    rest = ((value - (whole << bits)) << 1) - (np.int64(1) << bits)
    slack = np.asarray(window, dtype=np.int64) << 1
    tie = (np.abs(rest) <= slack) & (bits > 0)
    return np.asarray(whole + np.where(tie, whole & 1, rest > 0))


def requantize(value: IntArray, factor: FixedPoint, rounding: Rounding = "nearest_even") -> IntArray:
    """round(value * factor), int64, for sums that fit into 32 bits; factor () or along the last axis of value.

    Jacob et al. 2018, arXiv:1712.05877, equation 7; see the module for the two roundings.
    """
    if rounding == "gemmlowp":
        return _gemmlowp(value, factor)
    window = 0 if factor.exact else (np.abs(value) + 1) >> 1
    return round_shift(value * factor.multiplier, factor.shift, _below_half(window, factor.shift))


def _below_half(window: npt.ArrayLike, shift: IntArray) -> IntArray:
    """At most a quarter of a step: the multiplier's error is larger only where the result is far outside of 8 bits."""
    return np.asarray(np.minimum(window, (np.int64(1) << shift) >> 2))


def _gemmlowp(value: IntArray, factor: FixedPoint) -> IntArray:
    right = factor.shift - _MULTIPLIER_BITS
    shifted = np.clip(value << np.maximum(-right, 0), INT32_MIN, INT32_MAX)
    return divide_by_power(doubling_high_product(shifted, factor.multiplier), np.maximum(right, 0))


def doubling_high_product(a: IntArray, b: npt.ArrayLike) -> IntArray:
    """round(a * b / 2**31), half-way values upward, saturated to 32 bits; a, b hold 32-bit integers.

    gemmlowp's SaturatingRoundingDoublingHighMul.
    """
    product = a * np.asarray(b, dtype=np.int64)
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    # The division truncates towards zero.
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    return np.asarray(np.minimum(high, INT32_MAX), dtype=np.int64)


def divide_by_power(value: IntArray, exponent: npt.ArrayLike) -> IntArray:
    """round(value / 2**exponent), half-way values away from zero. gemmlowp's RoundingDivideByPOT."""
    bits = np.asarray(exponent, dtype=np.int64)
    mask = (np.int64(1) << bits) - 1
    threshold = (mask >> 1) + (value < 0)
    return np.asarray((value >> bits) + ((value & mask) > threshold), dtype=np.int64)


def weighted_sum(terms: Sequence[tuple[IntArray, float]], rounding: Rounding = "nearest_even") -> IntArray:
    """round(sum of value * factor), int64; the values hold at most 16 bits, factors may be negative, shapes broadcast.

    "nearest_even" multiplies each term by a 31-bit multiplier, adds the products in 64 bits and rounds once.
    "gemmlowp" is TensorFlow Lite's addition: terms shifted left by 20 bits and brought to twice the largest factor.
    """
    if rounding == "gemmlowp":
        return _weighted_sum_gemmlowp(terms)
    multipliers, shift = common_fixed_point([factor for _, factor in terms])
    total = sum((value * np.int64(m) for (value, _), m in zip(terms, multipliers, strict=True)), np.int64(0))
    exact = all(m == f * 2.0**shift for m, (_, f) in zip(multipliers, terms, strict=True))
    window = 0 if exact else (sum((np.abs(value) for value, _ in terms), np.int64(0)) + 1) >> 1
    return round_shift(np.asarray(total), shift, _below_half(window, np.asarray(shift)))


_LEFT_SHIFT = 20


def _weighted_sum_gemmlowp(terms: Sequence[tuple[IntArray, float]]) -> IntArray:
    largest = 2 * max(abs(factor) for _, factor in terms)
    total: IntArray = np.zeros((), dtype=np.int64)
    for value, factor in terms:
        scaled = _gemmlowp(value << _LEFT_SHIFT, fixed_point(abs(factor) / largest))
        total = total + (scaled if factor > 0 else -scaled)
    return _gemmlowp(total, fixed_point(largest / 2.0**_LEFT_SHIFT))


def overflow(value: IntArray) -> int:
    """How many of the sums a 32-bit accumulator could not hold."""
    return int(np.count_nonzero((value < INT32_MIN) | (value > INT32_MAX)))
