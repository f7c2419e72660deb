"""Sums of integer layers to 8 bits in one pass, as numerics.integer.requantize does it with "nearest_even"."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]

_ROWS = 64  # rows that a thread takes at a time


@numba.njit(inline="always")
def _requantized(total: Any, multiplier: Any, shift: Any, exact: Any) -> Any:
    product = total * multiplier
    whole = product >> shift
    rest = ((product - (whole << shift)) << 1) - (1 << shift)
    # The multiplier's error, at most a quarter of a step, counts as half-way; see numerics.integer.
    slack = 0 if exact else min((abs(total) + 1) >> 1, (1 << shift) >> 2)
    if abs(rest) <= (slack << 1) and shift > 0:
        return whole + (whole & 1)
    return whole + (1 if rest > 0 else 0)


@numba.njit(cache=True, parallel=True)
def _rows(
    sums: Any, bias: Any, multiplier: Any, shift: Any, exact: Any, zero_point: Any, low: Any, high: Any, out: Any,
    broken: Any, beyond: Any,
) -> None:  # fmt: skip
    count, channels = sums.shape
    for block in numba.prange(broken.shape[0]):
        wrong = np.int64(0)
        over = np.int64(0)
        for row in range(block * _ROWS, min(count, (block + 1) * _ROWS)):
            for c in range(channels):
                value = sums[row, c]
                total = np.int64(value)
                wrong += total != value
                total += bias[c]
                over += total > 2147483647 or total < -2147483648
                q = _requantized(total, multiplier[c], shift[c], exact) + zero_point
                q = low if q < low else q
                q = high if q > high else q
                out[row, c] = q
        broken[block], beyond[block] = wrong, over


def requantize_rows(
    sums: npt.NDArray[Any], bias: npt.NDArray[np.int64], multiplier: npt.NDArray[np.int64],
    shift: npt.NDArray[np.int64], exact: bool, zero_point: int, low: int, high: int, out: Integers,
) -> tuple[int, int]:  # fmt: skip
    """out = clip(zero_point + round((sums + bias) * multiplier * 2**-shift), low, high).

    sums (R, C), float32 or float64 holding integers, or int64; bias, multiplier, shift (C,); out (R, C), int8 or uint8.
    Returns how many sums were no integers, and how many, with the bias, do not fit into 32 bits.
    """
    blocks = (sums.shape[0] + _ROWS - 1) // _ROWS
    broken, beyond = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
    _rows(sums, bias, multiplier, shift, exact, zero_point, low, high, out, broken, beyond)
    return int(broken.sum()), int(beyond.sum())


_BLOCK = 16384  # elements that a thread takes at a time


@numba.njit(cache=True, parallel=True)
def _sum(
    a: Any, b: Any, zero_a: Any, zero_b: Any, m_a: Any, m_b: Any, shift: Any, exact: Any,
    zero_point: Any, low: Any, high: Any, out: Any,
) -> None:  # fmt: skip
    n = a.shape[0]
    for block in numba.prange((n + _BLOCK - 1) // _BLOCK):
        for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            x, y = np.int64(a[i]) - zero_a, np.int64(b[i]) - zero_b
            total = x * m_a + y * m_b
            whole = total >> shift
            rest = ((total - (whole << shift)) << 1) - (1 << shift)
            slack = 0 if exact else min((abs(x) + abs(y) + 1) >> 1, (1 << shift) >> 2)
            if abs(rest) <= (slack << 1) and shift > 0:
                q = whole + (whole & 1)
            else:
                q = whole + (1 if rest > 0 else 0)
            q += zero_point
            q = low if q < low else q
            q = high if q > high else q
            out[i] = q


def requantize_sum(
    terms: tuple[tuple[Integers, int], tuple[Integers, int]], multipliers: tuple[int, int], shift: int, exact: bool,
    zero_point: int, low: int, high: int, out: Integers,
) -> None:  # fmt: skip
    """out = clip(zero_point + round((sum (q - z) * multiplier) * 2**-shift), low, high), all of shape (n,).

    terms: two pairs of integers q and zero point z. As numerics.integer.weighted_sum with "nearest_even".
    """
    (a, zero_a), (b, zero_b) = terms
    _sum(a, b, zero_a, zero_b, *multipliers, shift, exact, zero_point, low, high, out)


@numba.njit(cache=True, parallel=True)
def _product(
    a: Any, b: Any, zero_a: Any, zero_b: Any, multiplier: Any, shift: Any, exact: Any,
    zero_point: Any, low: Any, high: Any, out: Any,
) -> None:  # fmt: skip
    images, rows, channels = a.shape
    repeat = b.shape[1] == 1
    for job in numba.prange(images * rows):
        image, row = job // rows, job % rows
        other = 0 if repeat else row
        for c in range(channels):
            total = (np.int64(a[image, row, c]) - zero_a) * (np.int64(b[image, other, c]) - zero_b)
            q = _requantized(total, multiplier, shift, exact) + zero_point
            q = low if q < low else q
            q = high if q > high else q
            out[image, row, c] = q


def requantize_product(
    a: Integers, zero_a: int, b: Integers, zero_b: int, multiplier: int, shift: int, exact: bool,
    zero_point: int, low: int, high: int, out: Integers,
) -> None:  # fmt: skip
    """out = clip(zero_point + round((a - zero_a) (b - zero_b) * multiplier * 2**-shift), low, high).

    a, out (N, R, C); b (N, R, C), or (N, 1, C) for a factor per image and channel. "nearest_even".
    """
    _product(a, b, zero_a, zero_b, multiplier, shift, exact, zero_point, low, high, out)


@numba.njit(cache=True, parallel=True)
def _look_up(table: Any, index: Any, out: Any) -> None:
    n = index.shape[0]
    for block in numba.prange((n + _BLOCK - 1) // _BLOCK):
        for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            out[i] = table[index[i]]


def look_up(table: Integers, index: npt.NDArray[np.uint8], out: Integers) -> None:
    """out = table[index]; table of 256 entries, index and out (n,)."""
    _look_up(table, index, out)
