"""Single-pass CPU kernels, compiled by numba: fake-quantize with its gradients, and the calibration histogram.

Physical limit of the forward kernel: read x, write y (8 bytes an element); of the backward kernel: read x and the
gradient, write the gradient of x (12 bytes). The clip mask is recomputed from x, so nothing else is stored or read.
At these sizes the kernels run at the speed of a copy; docs/performance.md has the measured distance.

All arrays are one-dimensional views of dense tensors, in the order in which the tensor lies in memory: per_tensor
fake-quantize is the same for every layout. Numba releases the GIL and takes as many threads as torch uses.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# reassoc lets the gradient sums become vector sums. No nnan: a NaN must reach the loss, where it stops the run;
# no arcp: x / scale is a true division, as in ONNX QuantizeLinear, or ties would round differently.
_FAST = {"reassoc", "contract", "nsz"}
_CHUNK = 16384


def set_threads(count: int) -> None:
    """Threads for all kernels; at most the number of cores numba was started with."""
    limit = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(max(1, min(count, limit)))


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def fake_quantize_forward(x: Array, y: Array, scale: Any, qlow: Any, qhigh: Any, low: Any, high: Any) -> None:
    """y = scale * clip(rint(clamp(x, low, high) / scale), qlow, qhigh); qlow = qmin - zero_point, qhigh likewise."""
    n = x.shape[0]
    chunks = (n + _CHUNK - 1) // _CHUNK
    for c in numba.prange(chunks):
        for i in range(c * _CHUNK, min(n, (c + 1) * _CHUNK)):
            v = x[i]
            v = low if v < low else v
            v = high if v > high else v
            q = np.rint(v / scale)
            q = qlow if q < qlow else q
            q = qhigh if q > qhigh else q
            y[i] = q * scale


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def fake_quantize_backward(
    x: Array,
    g: Array,
    gx: Array,
    scale: Any,
    qlow: Any,
    qhigh: Any,
    low: Any,
    high: Any,
    inside: Any,
    partial: npt.NDArray[np.float64],
) -> None:
    """Straight-through gradient of x into gx and the step-size gradient, summed per chunk, into `partial`.

    With v = clamp(x) / scale: gx = g where qlow <= v <= qhigh and low < x < high, else 0.
    d y / d scale = rint(v) - v inside, qlow below, qhigh above (LSQ, Esser et al. 2020, arXiv:1902.08153, eq. 3);
    the part inside is multiplied by `inside`: 0 leaves the gradient of PACT's clip (Choi et al., arXiv:1805.06085).
    """
    n = x.shape[0]
    for c in numba.prange(partial.shape[0]):
        total = np.float32(0.0)
        for i in range(c * _CHUNK, min(n, (c + 1) * _CHUNK)):
            u = x[i]
            v = low if u < low else u
            v = (high if v > high else v) / scale
            below = v < qlow
            above = v > qhigh
            slope = inside * (np.rint(v) - v)
            slope = qlow if below else slope
            slope = qhigh if above else slope
            total += g[i] * slope
            passes = (not below) & (not above) & (u > low) & (u < high)
            gx[i] = g[i] if passes else np.float32(0.0)
        partial[c] = total


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def fake_quantize_channels_forward(w: Array, y: Array, scale: Array, qlow: Any, qhigh: Any) -> None:
    """Per_channel: w and y have shape (outer, C, inner), scale (C,)."""
    outer, channels, inner = w.shape
    for job in numba.prange(outer * channels):
        o, c = job // channels, job % channels
        s = scale[c]
        for i in range(inner):
            q = np.rint(w[o, c, i] / s)
            q = qlow if q < qlow else q
            q = qhigh if q > qhigh else q
            y[o, c, i] = q * s


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def fake_quantize_channels_backward(
    w: Array, g: Array, gw: Array, scale: Array, qlow: Any, qhigh: Any, partial: npt.NDArray[np.float64]
) -> None:
    """Per_channel gradients; `partial` (outer, C) holds the step-size gradient before the sum over `outer`."""
    outer, channels, inner = w.shape
    for job in numba.prange(outer * channels):
        o, c = job // channels, job % channels
        s = scale[c]
        total = np.float32(0.0)
        for i in range(inner):
            v = w[o, c, i] / s
            below = v < qlow
            above = v > qhigh
            slope = np.rint(v) - v
            slope = qlow if below else slope
            slope = qhigh if above else slope
            total += g[o, c, i] * slope
            gw[o, c, i] = np.float32(0.0) if below or above else g[o, c, i]
        partial[o, c] = total


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def _columns_forward(w: Array, y: Array, scale: Array, qlow: Any, qhigh: Any) -> None:
    rows, columns = w.shape
    for r in numba.prange(rows):
        for c in range(columns):
            q = np.rint(w[r, c] / scale[c])
            q = qlow if q < qlow else q
            q = qhigh if q > qhigh else q
            y[r, c] = q * scale[c]


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def _columns_backward(
    w: Array, g: Array, gw: Array, scale: Array, qlow: Any, qhigh: Any, partial: npt.NDArray[np.float64]
) -> None:
    rows, columns = w.shape
    blocks = partial.shape[0]
    for b in numba.prange(blocks):
        for r in range(b * rows // blocks, (b + 1) * rows // blocks):
            for c in range(columns):
                v = w[r, c] / scale[c]
                below = v < qlow
                above = v > qhigh
                slope = np.rint(v) - v
                slope = qlow if below else slope
                slope = qhigh if above else slope
                partial[b, c] += g[r, c] * slope
                gw[r, c] = np.float32(0.0) if below or above else g[r, c]


def channels_forward(w: Array, y: Array, scale: Array, qlow: float, qhigh: float) -> None:
    """Per_channel fake-quantize of (outer, C, inner); inner == 1 (a linear layer's [K, N]) runs along the rows."""
    if w.shape[2] == 1:
        _columns_forward(w[:, :, 0], y[:, :, 0], scale, np.float32(qlow), np.float32(qhigh))
    else:
        fake_quantize_channels_forward(w, y, scale, np.float32(qlow), np.float32(qhigh))


def channels_backward(
    w: Array, g: Array, gw: Array, scale: Array, qlow: float, qhigh: float
) -> npt.NDArray[np.float64]:
    """Writes the gradient of w into gw and returns the gradient of scale, shape (C,)."""
    low, high = np.float32(qlow), np.float32(qhigh)
    if w.shape[2] == 1:
        partial = np.zeros((min(64, w.shape[0]), w.shape[1]))
        _columns_backward(w[:, :, 0], g[:, :, 0], gw[:, :, 0], scale, low, high, partial)
    else:
        partial = np.zeros(w.shape[:2])
        fake_quantize_channels_backward(w, g, gw, scale, low, high, partial)
    total: npt.NDArray[np.float64] = partial.sum(axis=0)
    return total


def tensor_backward(
    x: Array, g: Array, gx: Array, scale: float, qlow: float, qhigh: float, low: float, high: float, inside: float
) -> float:
    """Writes the gradient of x into gx and returns the gradient of scale."""
    partial = np.zeros((x.shape[0] + _CHUNK - 1) // _CHUNK)
    step, first, last, below, above, share = _float32(scale, qlow, qhigh, low, high, inside)
    fake_quantize_backward(x, g, gx, step, first, last, below, above, share, partial)
    return float(partial.sum())


def tensor_forward(x: Array, y: Array, scale: float, qlow: float, qhigh: float, low: float, high: float) -> None:
    """fake_quantize_forward with Python floats."""
    step, first, last, below, above = _float32(scale, qlow, qhigh, low, high)
    fake_quantize_forward(x, y, step, first, last, below, above)


def _float32(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(v) for v in values)


@numba.njit(parallel=True, cache=True)
def _range(x: Array, low: Array, high: Array) -> None:
    n = x.shape[0]
    for c in numba.prange(low.shape[0]):
        smallest, largest = np.float32(np.inf), np.float32(-np.inf)
        for i in range(c * _CHUNK, min(n, (c + 1) * _CHUNK)):
            smallest = min(smallest, x[i])
            largest = max(largest, x[i])
        low[c], high[c] = smallest, largest


def value_range(x: Array) -> tuple[float, float]:
    """(min, max) of a one-dimensional array; NaN where it holds one."""
    chunks = (x.shape[0] + _CHUNK - 1) // _CHUNK
    low, high = np.empty(chunks, np.float32), np.empty(chunks, np.float32)
    _range(x, low, high)
    return float(low.min()), float(high.max())


@numba.njit(parallel=True, cache=True)
def _histogram(x: Array, counts: npt.NDArray[np.int64], low: Any, inverse_width: Any) -> None:
    jobs, bins = counts.shape
    n = x.shape[0]
    for j in numba.prange(jobs):
        for i in range(j * n // jobs, (j + 1) * n // jobs):
            k = int((x[i] - low) * inverse_width)
            k = 0 if k < 0 else k
            k = bins - 1 if k >= bins else k
            counts[j, k] += 1


def add_to_histogram(x: Array, counts: npt.NDArray[np.int64], low: float, high: float) -> None:
    """Adds the counts of x in len(counts) equal bins of [low, high] to `counts`; values outside go to the end bins."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"histogram range [{low}, {high}]")
    parts = np.zeros((numba.get_num_threads(), counts.shape[0]), np.int64)
    _histogram(x, parts, np.float32(low), np.float32(counts.shape[0] / (high - low)))
    counts += parts.sum(axis=0)


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def _channel_errors(
    w: Array, factors: Array, qlow: Any, qhigh: Any, errors: npt.NDArray[np.float64], peak: Array
) -> None:
    channels, size = w.shape
    for c in numba.prange(channels):
        largest = np.float32(0.0)
        for i in range(size):
            largest = max(largest, abs(w[c, i]))
        peak[c] = largest
        for f in range(factors.shape[0]):
            scale = largest * factors[f] / qhigh
            total = np.float32(0.0)
            if scale > 0:
                for i in range(size):
                    q = np.rint(w[c, i] / scale)
                    q = qlow if q < qlow else q
                    q = qhigh if q > qhigh else q
                    d = q * scale - w[c, i]
                    total += d * d
            errors[c, f] = total


def channel_errors(w: Array, factors: Array, qlow: float, qhigh: float) -> tuple[Array, npt.NDArray[np.float64]]:
    """(abs-max (C,), squared error (C, F)) of w (C, K) with scale = factor * abs-max / qhigh for each factor (F,)."""
    errors = np.zeros((w.shape[0], factors.shape[0]))
    peak = np.zeros(w.shape[0], np.float32)
    _channel_errors(w, factors, np.float32(qlow), np.float32(qhigh), errors, peak)
    return peak, errors
