"""An operator and the fake-quantize behind it (and in front of it) in one pass: the tensor between them never exists.

Each kernel gives the bits that the operator and the separate fake-quantize give. Backward it divides as it did forward:
with short scales half-way values are frequent, and a gradient must know to which side they were rounded.

Physical limits, forward and backward, in bytes an element of the output:
    hard_swish   8 and 12 (read x, write y; read x and g, write gx), apart from it 24 and 36
    sum         12 and 16, apart from it 20 and 12, plus 4 that the sum is kept in memory
    scaled       8 and 12, apart from it 16 and 40
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fullquant.runtime.kernels.division import quotient
from fullquant.runtime.kernels.fake_quantize import CHUNK, EXACT, FAST, Array, float32, grid_bounds

Partial = npt.NDArray[np.float64]

_ZERO, _HALF, _ONE, _THREE, _SIX = float32(0.0, 0.5, 1.0, 3.0, 6.0)
_THIRD, _SIXTH = float32(1 / 3, 1 / 6)


# ---- fake-quantize, HardSwish, fake-quantize -------------------------------------------------------------------------


@numba.njit(fastmath=EXACT, cache=True)
def _hard_swish_forward(
    x: Array, y: Array, scale_in: Any, qlow_in: Any, qhigh_in: Any, scale: Any, qlow: Any, qhigh: Any
) -> None:
    inverse_in, inverse = _ONE / scale_in, _ONE / scale
    least_in, most_in, least, most = qlow_in * scale_in, qhigh_in * scale_in, qlow * scale, qhigh * scale
    for i in range(x.shape[0]):
        v = x[i]
        v = least_in if v < least_in else v
        v = most_in if v > most_in else v
        u = np.rint(quotient(v, scale_in, inverse_in)) * scale_in
        r = u + _THREE
        r = _ZERO if r < _ZERO else r
        r = _SIX if r > _SIX else r
        v = quotient(u * r, _SIX, _SIXTH)
        v = least if v < least else v
        v = most if v > most else v
        y[i] = np.rint(quotient(v, scale, inverse)) * scale


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _hard_swish_forward_all(
    x: Array, y: Array, scale_in: Any, qlow_in: Any, qhigh_in: Any, scale: Any, qlow: Any, qhigh: Any
) -> None:
    n = x.shape[0]
    for c in numba.prange((n + CHUNK - 1) // CHUNK):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        _hard_swish_forward(x[a:b], y[a:b], scale_in, qlow_in, qhigh_in, scale, qlow, qhigh)


def hard_swish_forward(
    x: Array, y: Array, scale_in: float, range_in: tuple[float, float], scale: float, range_out: tuple[float, float]
) -> None:
    """y = fq(hard_swish(fq(x))), hard_swish(u) = u * min(max(u + 3, 0), 6) / 6; ranges: (qlow, qhigh) of the grids."""
    _hard_swish_forward_all(x, y, *float32(scale_in, *range_in, scale, *range_out))


@numba.njit(fastmath=FAST, cache=True)
def _hard_swish_backward(
    x: Array, g: Array, gx: Array, scale_in: Any, qlow_in: Any, qhigh_in: Any, scale: Any, qlow: Any, qhigh: Any,
    inside: Any,
) -> Any:  # fmt: skip
    first = second = _ZERO
    inverse_in, inverse = _ONE / scale_in, _ONE / scale
    least_in, most_in = (qlow_in - _ONE) * scale_in, (qhigh_in + _ONE) * scale_in
    for i in range(x.shape[0]):
        v = x[i]
        v = least_in if v < least_in else v
        v = quotient(most_in if v > most_in else v, scale_in, inverse_in)
        low_in, high_in = v < qlow_in, v > qhigh_in
        q = np.rint(v)
        c = qlow_in if low_in else q
        c = qhigh_in if high_in else c
        u = c * scale_in
        r = u + _THREE
        r = _ZERO if r < _ZERO else r
        r = _SIX if r > _SIX else r
        w = quotient(quotient(u * r, _SIX, _SIXTH), scale, inverse)
        low, high = w < qlow, w > qhigh
        slope = inside * (np.rint(w) - w)
        slope = qlow if low else slope
        slope = qhigh if high else slope
        second += g[i] * slope
        d = u * _THIRD + _HALF
        d = _ZERO if u <= -_THREE else d
        d = _ONE if u >= _THREE else d
        e = _ZERO if low or high else g[i] * d
        slope = inside * (q - v)
        slope = qlow_in if low_in else slope
        slope = qhigh_in if high_in else slope
        first += e * slope
        gx[i] = _ZERO if low_in or high_in else e
    return first, second


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _hard_swish_backward_all(
    x: Array, g: Array, gx: Array, partial: Partial,
    scale_in: Any, qlow_in: Any, qhigh_in: Any, scale: Any, qlow: Any, qhigh: Any, inside: Any,
) -> None:  # fmt: skip
    n = x.shape[0]
    for c in numba.prange(partial.shape[0]):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        partial[c, 0], partial[c, 1] = _hard_swish_backward(
            x[a:b], g[a:b], gx[a:b], scale_in, qlow_in, qhigh_in, scale, qlow, qhigh, inside
        )


def hard_swish_backward(
    x: Array, g: Array, gx: Array,
    scale_in: float, range_in: tuple[float, float], scale: float, range_out: tuple[float, float], inside: float,
) -> tuple[float, float]:  # fmt: skip
    """Writes the gradient of x into gx and returns those of scale_in and scale.

    The derivative of HardSwish is 0 up to -3, 1 from 3 on, x / 3 + 1/2 between (as PyTorch has it).
    """
    partial = np.zeros(((x.shape[0] + CHUNK - 1) // CHUNK, 2))
    constants = float32(scale_in, *range_in, scale, *range_out, inside)
    _hard_swish_backward_all(x, g, gx, partial, *constants)
    first, second = partial.sum(axis=0)
    return float(first), float(second)


# ---- sum, fake-quantize ----------------------------------------------------------------------------------------------


@numba.njit(fastmath=EXACT, cache=True)
def _sum_forward(p: Array, r: Array, y: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> None:
    inverse = _ONE / scale
    low, high = grid_bounds(scale, qlow, qhigh, low, high)
    for i in range(p.shape[0]):
        v = p[i] + r[i]
        v = low if v < low else v
        v = high if v > high else v
        y[i] = np.rint(quotient(v, scale, inverse)) * scale


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _sum_forward_all(p: Array, r: Array, y: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> None:
    n = p.shape[0]
    for c in numba.prange((n + CHUNK - 1) // CHUNK):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        _sum_forward(p[a:b], r[a:b], y[a:b], scale, qlow, qhigh, low, high)


def sum_forward(
    p: Array, r: Array, y: Array, scale: float, range_out: tuple[float, float], bounds: tuple[float, float]
) -> None:
    """y = fq(clamp(p + r, *bounds)); p and r have one shape and one layout."""
    _sum_forward_all(p, r, y, *float32(scale, *range_out, *bounds))


@numba.njit(fastmath=FAST, cache=True)
def _sum_backward(
    p: Array, r: Array, g: Array, gx: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any, inside: Any
) -> Any:
    total = _ZERO
    for i in range(p.shape[0]):
        u = p[i] + r[i]
        v = low if u < low else u
        v = (high if v > high else v) / scale
        below, above = v < qlow, v > qhigh
        slope = inside * (np.rint(v) - v)
        slope = qlow if below else slope
        slope = qhigh if above else slope
        total += g[i] * slope
        passes = (not below) & (not above) & (u > low) & (u < high)
        gx[i] = g[i] if passes else _ZERO
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _sum_backward_all(
    p: Array, r: Array, g: Array, gx: Array, partial: Partial,
    scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any, inside: Any,
) -> None:  # fmt: skip
    n = p.shape[0]
    for c in numba.prange(partial.shape[0]):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        partial[c] = _sum_backward(p[a:b], r[a:b], g[a:b], gx[a:b], scale, qlow, qhigh, low, high, inside)


def sum_backward(
    p: Array, r: Array, g: Array, gx: Array,
    scale: float, range_out: tuple[float, float], bounds: tuple[float, float], inside: float,
) -> float:  # fmt: skip
    """Writes the gradient of both p and r into gx and returns that of scale."""
    partial = np.zeros((p.shape[0] + CHUNK - 1) // CHUNK)
    _sum_backward_all(p, r, g, gx, partial, *float32(scale, *range_out, *bounds, inside))
    return float(partial.sum())


# ---- product with a factor for each channel, fake-quantize -----------------------------------------------------------


@numba.njit(fastmath=EXACT, cache=True)
def _scaled_forward(x: Array, s: Array, y: Array, scale: Any, qlow: Any, qhigh: Any) -> None:
    inverse, least, most = _ONE / scale, qlow * scale, qhigh * scale
    for c in range(x.shape[0]):
        v = x[c] * s[c]
        v = least if v < least else v
        v = most if v > most else v
        y[c] = np.rint(quotient(v, scale, inverse)) * scale


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _scaled_forward_all(x: Array, s: Array, y: Array, scale: Any, qlow: Any, qhigh: Any) -> None:
    images, pixels, _ = x.shape
    for job in numba.prange(images * pixels):
        n, k = job // pixels, job % pixels
        _scaled_forward(x[n, k], s[n], y[n, k], scale, qlow, qhigh)


def scaled_forward(x: Array, s: Array, y: Array, scale: float, range_out: tuple[float, float]) -> None:
    """y = fq(x * s): x and y [N, pixels, C] (a channels-last tensor), s [N, C], the gate of squeeze-and-excitation."""
    _scaled_forward_all(x, s, y, *float32(scale, *range_out))


@numba.njit(fastmath=FAST, cache=True)
def _scaled_backward(
    x: Array, s: Array, g: Array, gx: Array, gs: Array, scale: Any, qlow: Any, qhigh: Any, inside: Any
) -> Any:
    total = _ZERO
    inverse, least, most = _ONE / scale, (qlow - _ONE) * scale, (qhigh + _ONE) * scale
    for c in range(x.shape[0]):
        v = x[c] * s[c]
        v = least if v < least else v
        v = quotient(most if v > most else v, scale, inverse)
        below, above = v < qlow, v > qhigh
        slope = inside * (np.rint(v) - v)
        slope = qlow if below else slope
        slope = qhigh if above else slope
        total += g[c] * slope
        e = _ZERO if below or above else g[c]
        gx[c] = e * s[c]
        gs[c] += e * x[c]
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _scaled_backward_all(
    x: Array, s: Array, g: Array, gx: Array, gs: Array, partial: Partial, scale: Any, qlow: Any, qhigh: Any, inside: Any
) -> None:
    images, pixels, _ = x.shape
    for n in numba.prange(images):
        for k in range(pixels):
            partial[n] += _scaled_backward(x[n, k], s[n], g[n, k], gx[n, k], gs[n], scale, qlow, qhigh, inside)


def scaled_backward(
    x: Array, s: Array, g: Array, gx: Array, gs: Array, scale: float, range_out: tuple[float, float], inside: float
) -> float:
    """Writes the gradients of x into gx [N, pixels, C] and of s into gs [N, C]; returns that of scale."""
    gs[:] = 0.0
    partial = np.zeros(x.shape[0])
    _scaled_backward_all(x, s, g, gx, gs, partial, *float32(scale, *range_out, inside))
    return float(partial.sum())
