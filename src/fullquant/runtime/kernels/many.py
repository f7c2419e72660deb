"""Per_channel fake-quantize of many tensors in one call: a network has some sixty weights, most of them small.

One by one, starting the threads and the way through Python cost more than the arithmetic of a small weight
(MobileNetV3-large, 64 weights, forward and backward: 11.5 ms of a step one by one, under a profiler). Numba's arrays of
arrays would be compiled for each number of tensors; here the tensors are passed as addresses.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from fullquant.runtime.kernels.fake_quantize import CHUNK, EXACT, FAST, channel_backward, forward

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@intrinsic
def _floats(typing: Any, address: Any) -> Any:
    """An address as a pointer to float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer(types.float32)  # type: ignore[no-untyped-call]
    return pointer(types.int64), generate


@numba.njit(inline="always")
def _rows(address: Any, begin: Any, count: Any, length: Any) -> Any:
    """Rows `begin` to `begin + count` of a matrix with rows of `length` float32 at `address`."""
    start: Any = _floats(address + 4 * begin * length)  # type: ignore[call-arg]
    return numba.carray(start, (count, length))


@numba.njit(parallel=True, fastmath=EXACT, cache=True)
def _forward(w: Integers, y: Integers, jobs: Integers, scale: Array, qlow: Array, qhigh: Array) -> None:
    endless = np.float32(np.inf)
    for job in numba.prange(jobs.shape[0]):
        k, begin, count, length, channel = jobs[job]
        source, target = _rows(w[k], begin, count, length), _rows(y[k], begin, count, length)
        for r in range(count):
            forward(source[r], target[r], scale[channel + r], qlow[k], qhigh[k], -endless, endless)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _backward(
    w: Integers, g: Integers, gw: Integers, jobs: Integers, scale: Array, qlow: Array, qhigh: Array, total: Array
) -> None:
    for job in numba.prange(jobs.shape[0]):
        k, begin, count, length, channel = jobs[job]
        if g[k] == 0:
            continue
        values, gradients = _rows(w[k], begin, count, length), _rows(g[k], begin, count, length)
        result = _rows(gw[k], begin, count, length)
        for r in range(count):
            c = channel + r
            total[c] = scale[c] * channel_backward(values[r], gradients[r], result[r], scale[c], qlow[k], qhigh[k])


def channel_jobs(shapes: list[tuple[int, int]]) -> Integers:
    """The work in pieces of about CHUNK elements: rows (tensor, first channel, channels, length, first scale).

    shapes: (channels, elements of a channel) of each tensor. The scales of all tensors are one vector.
    """
    jobs: list[tuple[int, int, int, int, int]] = []
    first = 0
    for k, (channels, length) in enumerate(shapes):
        step = max(1, CHUNK // max(1, length))
        jobs += [(k, c, min(step, channels - c), length, first + c) for c in range(0, channels, step)]
        first += channels
    return np.array(jobs, np.int64).reshape(-1, 5)


def many_forward(w: Integers, y: Integers, jobs: Integers, scale: Array, qlow: Array, qhigh: Array) -> None:
    """y = per_channel fake-quantize of w, as `channels_forward`, tensor by tensor.

    w, y: addresses of dense float32 tensors whose outermost dimension in memory is the channel's; jobs: of
    `channel_jobs`; scale: one for each channel of all tensors; qlow, qhigh: one for each tensor.
    """
    _forward(w, y, jobs, scale, qlow, qhigh)


def many_backward(
    w: Integers, g: Integers, gw: Integers, jobs: Integers, scale: Array, qlow: Array, qhigh: Array
) -> Array:
    """Writes the gradients of w into gw; returns that of log(scale). Address 0 in g: no gradient, gw is not written."""
    total = np.zeros_like(scale)
    _backward(w, g, gw, jobs, scale, qlow, qhigh, total)
    return total
