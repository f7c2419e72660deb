"""Softmax, log-softmax and normalisation in integers: tables of 256 entries, sums, one division or square root.

q - zero_point of a tensor is written x, its scale s; results are integers in steps of the output's scale t, before its
zero point and its clip.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fullquant.numerics.integer import common_fixed_point, fixed_point, requantize, round_shift
from fullquant.numerics.qparams import IntArray

FloatTable = npt.NDArray[np.float64]

_LOG_BITS = 20  # bits behind the point of a logarithm
_TABLE_BITS = 10  # the logarithm of a mantissa is read between 2**10 + 1 points
_UNIT_BITS = 20  # bits behind the point of a normalised value


def exponential_table(scale: float, count: int) -> tuple[IntArray, int]:
    """(round(exp(-d * s) * 2**f) for distances d = 0 ... 255 from the maximum, f); `count` of them fit in 31 bits."""
    bits = 30 - max(count - 1, 0).bit_length()
    return np.rint(np.exp(-np.arange(256) * scale) * 2.0**bits).astype(np.int64), bits


def softmax(x: IntArray, scale: float, scale_out: float, axis: int) -> IntArray:
    """round(exp(s x_i) / sum exp(s x_j) / t), half-way values to even, x of at most 8 bits, sums along `axis`."""
    table, _ = exponential_table(scale, x.shape[axis])
    exponentials = table[x.max(axis=axis, keepdims=True) - x]
    inverse = fixed_point(1 / scale_out)
    # A divisor of at most 62 bits: beyond a shift of 31 the results are below 2**-31 steps of any use.
    beyond = max(int(inverse.shift) - 31, 0)
    numerator = exponentials * (inverse.multiplier >> beyond)
    divisor = exponentials.sum(axis=axis, keepdims=True) << (inverse.shift - beyond)
    whole, rest = np.divmod(numerator, divisor)
    rest = (rest << 1) - divisor
    return np.asarray(whole + np.where(rest == 0, whole & 1, rest > 0))


def log_softmax(x: IntArray, scale: float, scale_out: float, axis: int) -> IntArray:
    """round((s x_i - ln sum exp(s x_j)) / t), x of at most 8 bits; the logarithm has 20 bits behind the point."""
    table, bits = exponential_table(scale, x.shape[axis])
    distance = x.max(axis=axis, keepdims=True) - x
    total = table[distance].sum(axis=axis, keepdims=True)
    logarithm = natural_logarithm(total) - round(bits * np.log(2.0) * 2**_LOG_BITS)
    steps = np.rint(np.arange(256) * scale * 2.0**_LOG_BITS).astype(np.int64)
    return requantize(-(steps[distance] + logarithm), fixed_point(1 / (scale_out * 2.0**_LOG_BITS)))


def natural_logarithm(value: IntArray) -> IntArray:
    """round(ln(value) * 2**20) of integers in [1, 2**31), error at most 2 units: a table of mantissas, interpolated."""
    points = np.rint(np.log1p(np.arange(2**_TABLE_BITS + 1) / 2**_TABLE_BITS) * 2.0**30).astype(np.int64)
    exponent = np.frexp(value.astype(np.float64))[1].astype(np.int64) - 1
    mantissa = (value << (30 - exponent)) - 2**30
    index, rest = mantissa >> (30 - _TABLE_BITS), mantissa & (2 ** (30 - _TABLE_BITS) - 1)
    between = points[index] + round_shift((points[index + 1] - points[index]) * rest, 30 - _TABLE_BITS)
    return round_shift(exponent * round(np.log(2.0) * 2.0**30) + between, 30 - _LOG_BITS)


def affine_map(x: IntArray, gain: FloatTable, offset: FloatTable) -> IntArray:
    """round(gain * x + offset), gain and offset in steps of the output, broadcast against x; |x| below 2**31.

    One multiplier of 30 bits for each gain and an addend of 62 bits, at one shift.
    """
    largest = max(float(np.abs(gain).max()), float(np.abs(offset).max()) * 2.0**-30, 2.0**-30)
    _, shift = common_fixed_point([largest])
    shift = min(shift - 1, 61)
    multiplier = np.rint(gain * 2.0**shift).astype(np.int64)
    return round_shift(x * multiplier + np.rint(offset * 2.0**shift).astype(np.int64), shift)


def layer_norm(
    x: IntArray, scale: float, scale_out: float, axes: tuple[int, ...], epsilon: float,
    gain: FloatTable, offset: FloatTable,
) -> IntArray:  # fmt: skip
    """round((gain * (v - mean) / sqrt(var + epsilon) + offset) / t), v = s x, mean and variance over `axes`.

    With n values, sums A = sum x and B = sum x^2: (v - mean) / sqrt(var + epsilon)
    = (n x - A) / sqrt(n B - A^2 + epsilon n^2 / s^2). The root is that of an integer, the quotient has 20 bits
    behind the point. ValueError where n^2 * 2**16 exceeds 62 bits.
    """
    count = int(np.prod([x.shape[axis] for axis in axes]))
    if count >= 2**22:
        raise ValueError(f"a normalisation over {count} values needs more than 64 bits")
    total = x.sum(axis=axes, keepdims=True)
    spread = count * (x * x).sum(axis=axes, keepdims=True) - total * total
    room = min(epsilon * (count / scale) ** 2, 2.0**59)
    half = np.clip(60 - np.frexp(spread + room)[1].astype(np.int64), 0, 60) >> 1
    # Shifted before it is rounded: of few values, epsilon may be less than 1. Never 0, as in float.
    shifted = np.maximum(np.rint(np.ldexp(room, 2 * half)), 1).astype(np.int64)
    root = square_root((spread << (2 * half)) + shifted)
    numerator = count * x - total
    # |numerator| <= root * sqrt(count) * 2**-half: shifted by half + 20 bits it stays below 2**62.
    quotient = _divide(numerator << half, root, _UNIT_BITS)
    return affine_map(quotient, gain / scale_out * 2.0**-_UNIT_BITS, offset / scale_out)


def square_root(value: IntArray) -> IntArray:
    """floor(sqrt(value)) of integers in [0, 2**62)."""
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root = root - (root * root > value)
    return np.asarray(root + ((root + 1) * (root + 1) <= value))


def _divide(numerator: IntArray, divisor: IntArray, bits: int) -> IntArray:
    """round(numerator * 2**bits / divisor), long division: the whole part first, then the bits behind the point."""
    whole, rest = np.divmod(numerator, divisor)
    for _ in range(bits):
        rest = rest << 1
        more = rest >= divisor
        whole = (whole << 1) + more
        rest = rest - np.where(more, divisor, 0)
    return np.asarray(whole + ((rest << 1) >= divisor))
