"""What calibration counts and searches: ranges, histograms, and the weight scale with the least squared error."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fullquant.runtime.kernels.division import quotient
from fullquant.runtime.kernels.fake_quantize import CHUNK, EXACT, FAST, Array

Integers = npt.NDArray[np.int32]

# Histograms that one job fills in turn.
_LANES = 4


# Floats in the order of their bits as integers: negative ones are turned round. NaN lies beyond the infinities, so that
# one pass without comparisons of floats, which become vector instructions, finds both ends and every NaN.
@numba.njit(cache=True)
def _key(bits: Any) -> Any:
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@numba.njit(cache=True)
def _chunk_range(bits: Integers) -> Any:
    low = high = _key(bits[0])
    for i in range(bits.shape[0]):
        k = _key(bits[i])
        low = k if k < low else low
        high = k if k > high else high
    return low, high


@numba.njit(parallel=True, cache=True)
def _range(bits: Integers, low: Integers, high: Integers) -> None:
    n = bits.shape[0]
    for c in numba.prange(low.shape[0]):
        low[c], high[c] = _chunk_range(bits[c * CHUNK : min(n, (c + 1) * CHUNK)])


def value_range(x: Array) -> tuple[float, float]:
    """(min, max) of a one-dimensional array; NaN where it holds one."""
    chunks = (x.shape[0] + CHUNK - 1) // CHUNK
    low, high = np.empty(chunks, np.int32), np.empty(chunks, np.int32)
    _range(x.view(np.int32), low, high)
    ends = np.array([low.min(), high.max()], np.int32)
    ends ^= (ends >> 31) & 0x7FFFFFFF
    smallest, largest = ends.view(np.float32).tolist()
    return (math.nan, math.nan) if math.isnan(smallest) or math.isnan(largest) else (smallest, largest)


@numba.njit(fastmath=EXACT, cache=True)
def _bin(value: Any, inverse_width: Any, half: Any) -> Any:
    k = np.floor(value * inverse_width)
    k = np.float32(-1.0) if value < np.float32(0.0) and k == np.float32(0.0) else k  # a product that vanished
    k = -half if k < -half else k
    k = half - np.float32(1.0) if k > half - np.float32(1.0) else k
    return np.uintp(k + half)


@numba.njit(cache=True)
def _count(x: Array, counts: npt.NDArray[np.int32], inverse_width: Any) -> None:
    half = np.float32(counts.shape[1] // 2)
    whole = x.shape[0] // _LANES
    for i in range(whole):
        # Equal neighbours, the zeros behind a ReLU, would wait for each other in one histogram.
        for lane in range(_LANES):
            counts[lane, _bin(x[_LANES * i + lane], inverse_width, half)] += 1
    for value in x[_LANES * whole :]:
        counts[0, _bin(value, inverse_width, half)] += 1


@numba.njit(parallel=True, cache=True)
def _histogram(x: Array, counts: npt.NDArray[np.int32], inverse_width: Any) -> None:
    jobs = counts.shape[0]
    n = x.shape[0]
    for j in numba.prange(jobs):
        _count(x[j * n // jobs : (j + 1) * n // jobs], counts[j], inverse_width)


def add_to_histogram(x: Array, counts: npt.NDArray[np.int64], reach: float) -> None:
    """Adds the counts of x in len(counts) equal bins of [-reach, reach) to `counts`; values outside go to the end bins.

    reach and len(counts) are powers of two: the product with the inverse of a bin's width is then exact, and each value
    falls into the bin in which it lies.
    """
    mantissa, _ = math.frexp(reach)
    if mantissa != 0.5 or len(counts) & (len(counts) - 1):
        raise ValueError(f"histogram of {len(counts)} bins up to {reach}: powers of two are wanted")
    parts = np.zeros((numba.get_num_threads(), _LANES, len(counts)), np.int32)
    _histogram(x, parts, np.float32(len(counts) / (2 * reach)))
    counts += parts.sum(axis=(0, 1), dtype=np.int64)


@numba.njit(fastmath=FAST, cache=True)
def _squared_error(w: Array, scale: Any, qlow: Any, qhigh: Any) -> Any:
    total = np.float32(0.0)
    inverse = np.float32(1.0) / scale
    for i in range(w.shape[0]):
        q = np.rint(quotient(w[i], scale, inverse))
        q = qlow if q < qlow else q
        q = qhigh if q > qhigh else q
        d = q * scale - w[i]
        total += d * d
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _channel_errors(
    w: Array, factors: Array, qlow: Any, qhigh: Any, errors: npt.NDArray[np.float64], peak: Array
) -> None:
    for c in numba.prange(w.shape[0]):
        largest = np.float32(0.0)
        for value in w[c]:
            largest = max(largest, abs(value))
        peak[c] = largest
        for f in range(factors.shape[0]):
            scale = largest * factors[f] / qhigh
            errors[c, f] = _squared_error(w[c], scale, qlow, qhigh) if scale > 0 else np.float32(0.0)


def channel_errors(w: Array, factors: Array, qlow: float, qhigh: float) -> tuple[Array, npt.NDArray[np.float64]]:
    """(abs-max (C,), squared error (C, F)) of w (C, K) with scale = factor * abs-max / qhigh for each factor (F,)."""
    errors = np.zeros((w.shape[0], factors.shape[0]))
    peak = np.zeros(w.shape[0], np.float32)
    _channel_errors(w, factors, np.float32(qlow), np.float32(qhigh), errors, peak)
    return peak, errors


@numba.njit(fastmath=FAST, cache=True)
def _error_dot(x: Array, g: Array, scale: Any, qlow: Any, qhigh: Any) -> Any:
    total = np.float32(0.0)
    inverse = np.float32(1.0) / scale
    low, high = qlow * scale, qhigh * scale
    for i in range(x.shape[0]):
        v = low if x[i] < low else x[i]
        q = np.rint(quotient(high if v > high else v, scale, inverse))
        total += g[i] * (q * scale - x[i])
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _error_dots(x: Array, g: Array, scale: Array, qlow: Array, qhigh: Array, dots: npt.NDArray[np.float64]) -> None:
    size = x.shape[1]
    for n in numba.prange(x.shape[0]):
        for c in range((size + CHUNK - 1) // CHUNK):
            a, b = c * CHUNK, min(size, (c + 1) * CHUNK)
            for k in range(scale.shape[0]):
                dots[n, k] += _error_dot(x[n, a:b], g[n, a:b], scale[k], qlow[k], qhigh[k])


def error_dots(x: Array, g: Array, scale: Array, qlow: Array, qhigh: Array) -> npt.NDArray[np.float64]:
    """sum_i g * (fq(x) - x) of each row of x, g (N, M), for each grid: scale, qlow, qhigh (K,); result (N, K)."""
    dots = np.zeros((x.shape[0], scale.shape[0]))
    _error_dots(x, g, scale, qlow, qhigh, dots)
    return dots


# Rows that one job sums up in float32 before the sums are added in float64.
_ROWS = 256


@numba.njit(fastmath=FAST, cache=True)
def _add_row(x: Array, pivot: Array, sums: Array, squares: Array) -> None:
    for c in range(x.shape[0]):
        d = x[c] - pivot[c]
        sums[c] += d
        squares[c] += d * d


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _channel_sums(x: Array, pivot: Array, sums: Array, squares: Array) -> None:
    rows = x.shape[0]
    for job in numba.prange(sums.shape[0]):
        for r in range(job * _ROWS, min(rows, (job + 1) * _ROWS)):
            _add_row(x[r], pivot, sums[job], squares[job])


def channel_moments(x: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(mean, variance), each (C,), of the columns of x (rows, C); around a pivot, so that a large mean costs no digits.

    PyTorch's var_mean over a channels-last tensor takes ten times as long.
    """
    jobs = (x.shape[0] + _ROWS - 1) // _ROWS
    sums, squares = np.zeros((2, jobs, x.shape[1]), np.float32)
    _channel_sums(x, x[0], sums, squares)
    mean = sums.sum(axis=0, dtype=np.float64) / x.shape[0]
    variance = squares.sum(axis=0, dtype=np.float64) / x.shape[0] - mean**2
    return x[0] + mean, np.maximum(variance, 0.0)
