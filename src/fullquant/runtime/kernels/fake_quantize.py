"""Fake-quantize with its gradients: per_tensor and per_channel.

Physical limit of the forward kernel: read x, write y (8 bytes an element); of the backward kernel: read x and the
gradient, write the gradient of x (12 bytes). The clip mask is recomputed from x, so nothing else is stored or read.
docs/performance.md has the measured distance from it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fullquant.runtime.kernels.division import quotient

Array = npt.NDArray[np.float32]

# reassoc lets the gradient sums become vector sums. No nnan: a NaN must reach the loss, where it stops the run;
# no arcp: x / scale is a true division, as in ONNX QuantizeLinear, or ties would round differently.
FAST = {"reassoc", "contract", "nsz"}
# Forward, every bit counts: no fused multiply-add, no other order.
EXACT = {"nsz"}
# Elements that one thread takes at a time: the arrays of a chunk fit into the second-level cache.
CHUNK = 16384


def set_threads(count: int) -> None:
    """Threads for all kernels; at most the number of cores numba was started with."""
    limit = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(max(1, min(count, limit)))


def float32(*values: float) -> tuple[np.float32, ...]:
    """Numba compiles for the types that it is given: constants are float32 like the data."""
    return tuple(np.float32(v) for v in values)


_ONE = np.float32(1.0)


@numba.njit(inline="always")
def grid_bounds(scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> Any:
    """(low, high) of clamp(x, low, high) / scale, rounded, inside the grid: nothing is left to clip after rounding."""
    least, most = qlow * scale, qhigh * scale
    return max(low, least), max(min(high, most), least)


@numba.njit(fastmath=EXACT, cache=True)
def forward(x: Array, y: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> None:
    """One thread's share of `tensor_forward`, or one channel."""
    inverse = _ONE / scale
    low, high = grid_bounds(scale, qlow, qhigh, low, high)
    for i in range(x.shape[0]):
        v = x[i]
        v = low if v < low else v
        v = high if v > high else v
        y[i] = np.rint(quotient(v, scale, inverse)) * scale


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _tensor_forward(x: Array, y: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> None:
    n = x.shape[0]
    for c in numba.prange((n + CHUNK - 1) // CHUNK):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        forward(x[a:b], y[a:b], scale, qlow, qhigh, low, high)


def tensor_forward(x: Array, y: Array, scale: float, qlow: float, qhigh: float, low: float, high: float) -> None:
    """y = scale * clip(rint(clamp(x, low, high) / scale), qlow, qhigh); qlow = qmin - zero_point, qhigh likewise."""
    _tensor_forward(x, y, *float32(scale, qlow, qhigh, low, high))


@numba.njit(fastmath=FAST, cache=True)
def _backward(
    x: Array, g: Array, gx: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any, inside: Any
) -> Any:
    total = np.float32(0.0)
    inverse = _ONE / scale
    # One step beyond the grid says as much as infinity, and has a quotient.
    least, most = max(low, (qlow - _ONE) * scale), min(high, (qhigh + _ONE) * scale)
    for i in range(x.shape[0]):
        u = x[i]
        v = least if u < least else u
        v = quotient(most if v > most else v, scale, inverse)
        below = v < qlow
        above = v > qhigh
        slope = inside * (np.rint(v) - v)
        slope = qlow if below else slope
        slope = qhigh if above else slope
        total += g[i] * slope
        passes = (not below) & (not above) & (u > low) & (u < high)
        gx[i] = g[i] if passes else np.float32(0.0)
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _tensor_backward(
    x: Array,
    g: Array,
    gx: Array,
    partial: npt.NDArray[np.float64],
    scale: Any,
    qlow: Any,
    qhigh: Any,
    low: Any,
    high: Any,
    inside: Any,
) -> None:
    n = x.shape[0]
    for c in numba.prange(partial.shape[0]):
        a, b = c * CHUNK, min(n, (c + 1) * CHUNK)
        partial[c] = _backward(x[a:b], g[a:b], gx[a:b], scale, qlow, qhigh, low, high, inside)


def tensor_backward(
    x: Array, g: Array, gx: Array, scale: float, qlow: float, qhigh: float, low: float, high: float, inside: float
) -> float:
    """Writes the straight-through gradient of x into gx and returns the gradient of scale.

    With v = clamp(x) / scale: gx = g where qlow <= v <= qhigh and low < x < high, else 0.
    d y / d scale = rint(v) - v inside, qlow below, qhigh above (LSQ, Esser et al. 2020, arXiv:1902.08153, eq. 3);
    the part inside is multiplied by `inside`: 0 leaves the gradient of PACT's clip (Choi et al., arXiv:1805.06085).
    Sums are float32 within a chunk, float64 between chunks.
    """
    partial = np.zeros((x.shape[0] + CHUNK - 1) // CHUNK)
    _tensor_backward(x, g, gx, partial, *float32(scale, qlow, qhigh, low, high, inside))
    return float(partial.sum())


# ---- per_channel -----------------------------------------------------------------------------------------------------


@numba.njit(fastmath=FAST, cache=True)
def channel_backward(w: Array, g: Array, gw: Array, scale: Any, qlow: Any, qhigh: Any) -> Any:
    """The gradient of w, straight through, into gw; returns that of the scale."""
    total = np.float32(0.0)
    inverse = _ONE / scale
    for i in range(w.shape[0]):
        v = quotient(w[i], scale, inverse)
        below = v < qlow
        above = v > qhigh
        slope = np.rint(v) - v
        slope = qlow if below else slope
        slope = qhigh if above else slope
        total += g[i] * slope
        gw[i] = np.float32(0.0) if below or above else g[i]
    return total


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _rows_forward(w: Array, y: Array, scale: Array, qlow: Any, qhigh: Any) -> None:
    outer, channels, _ = w.shape
    endless = np.float32(np.inf)
    for job in numba.prange(outer * channels):
        o, c = job // channels, job % channels
        forward(w[o, c], y[o, c], scale[c], qlow, qhigh, -endless, endless)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _rows_backward(
    w: Array, g: Array, gw: Array, scale: Array, qlow: Any, qhigh: Any, partial: npt.NDArray[np.float64]
) -> None:
    outer, channels, _ = w.shape
    for job in numba.prange(outer * channels):
        o, c = job // channels, job % channels
        partial[o, c] = channel_backward(w[o, c], g[o, c], gw[o, c], scale[c], qlow, qhigh)


@numba.njit(fastmath=EXACT, cache=True)
def _row_of_channels_forward(w: Array, y: Array, scale: Array, inverse: Array, qlow: Any, qhigh: Any) -> None:
    for c in range(w.shape[0]):
        q = np.rint(quotient(w[c], scale[c], inverse[c]))
        q = qlow if q < qlow else q
        q = qhigh if q > qhigh else q
        y[c] = q * scale[c]


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _columns_forward(w: Array, y: Array, scale: Array, qlow: Any, qhigh: Any) -> None:
    inverse = _ONE / scale
    for r in numba.prange(w.shape[0]):
        _row_of_channels_forward(w[r], y[r], scale, inverse, qlow, qhigh)


@numba.njit(fastmath=FAST, cache=True)
def _row_of_channels_backward(
    w: Array, g: Array, gw: Array, scale: Array, inverse: Array, qlow: Any, qhigh: Any, total: Array
) -> None:
    for c in range(w.shape[0]):
        v = quotient(w[c], scale[c], inverse[c])
        below = v < qlow
        above = v > qhigh
        slope = np.rint(v) - v
        slope = qlow if below else slope
        slope = qhigh if above else slope
        total[c] += g[c] * slope
        gw[c] = np.float32(0.0) if below or above else g[c]


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _columns_backward(w: Array, g: Array, gw: Array, scale: Array, qlow: Any, qhigh: Any, partial: Array) -> None:
    rows, blocks = w.shape[0], partial.shape[0]
    inverse = _ONE / scale
    for b in numba.prange(blocks):
        for r in range(b * rows // blocks, (b + 1) * rows // blocks):
            _row_of_channels_backward(w[r], g[r], gw[r], scale, inverse, qlow, qhigh, partial[b])


def channels_forward(w: Array, y: Array, scale: Array, qlow: float, qhigh: float) -> None:
    """Per_channel fake-quantize of (outer, C, inner); inner == 1 (a linear layer's [K, N]) runs along the rows."""
    low, high = float32(qlow, qhigh)
    if w.shape[2] == 1:
        _columns_forward(w.reshape(w.shape[:2]), y.reshape(y.shape[:2]), scale, low, high)
    else:
        _rows_forward(w, y, scale, low, high)


def channels_backward(
    w: Array, g: Array, gw: Array, scale: Array, qlow: float, qhigh: float
) -> npt.NDArray[np.float64]:
    """Writes the gradient of w into gw and returns the gradient of scale, shape (C,)."""
    low, high = float32(qlow, qhigh)
    if w.shape[2] == 1:
        blocks = np.zeros((min(64, w.shape[0]), w.shape[1]), np.float32)
        plane = w.shape[:2]
        _columns_backward(w.reshape(plane), g.reshape(plane), gw.reshape(plane), scale, low, high, blocks)
        return np.asarray(blocks.sum(axis=0, dtype=np.float64))
    partial = np.zeros(w.shape[:2])
    _rows_backward(w, g, gw, scale, low, high, partial)
    total: npt.NDArray[np.float64] = partial.sum(axis=0)
    return total
