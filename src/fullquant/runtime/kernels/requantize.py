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
