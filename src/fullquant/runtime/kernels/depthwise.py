"""The weight gradient of a depthwise convolution with a 5x5 kernel, in channels-last memory.

oneDNN, which PyTorch uses, has fast kernels for 3x3 and for the rest of a 5x5 layer; its weight gradient for 5x5 takes
4 to 9 times as long as the gradient of the input. Measured, one thread, oneDNN and this: 5.2 and 2.6 ms for
32x120x6x48, 16.5 and 3.3 ms for 16x672x14x14. MobileNetV3 has such a layer in every second block.

Multiply-adds: 25 for each element of the output gradient; each output row reads the five rows of x around it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fullquant.runtime.kernels.fake_quantize import FAST, Array


@numba.njit(fastmath=FAST, cache=True)
def _one(g: Array, x: Array, total: Array) -> None:
    for c in range(g.shape[0]):
        total[c] += g[c] * x[c]


@numba.njit(fastmath=FAST, cache=True)
def _five(
    g: Array, x0: Array, x1: Array, x2: Array, x3: Array, x4: Array,
    t0: Array, t1: Array, t2: Array, t3: Array, t4: Array,
) -> None:  # fmt: skip
    for c in range(g.shape[0]):
        slope = g[c]
        t0[c] += slope * x0[c]
        t1[c] += slope * x1[c]
        t2[c] += slope * x2[c]
        t3[c] += slope * x3[c]
        t4[c] += slope * x4[c]


@numba.njit(fastmath=FAST, cache=True)
def _row(g: Array, x: Array, total: Array, stride: Any, left: Any) -> None:
    """One row of the output gradient [W', C] with one row of x [W, C]: adds to total [5, C]."""
    width = x.shape[0]
    for w in range(g.shape[0]):
        first = w * stride - left
        if first >= 0 and first + 5 <= width:
            _five(
                g[w], x[first], x[first + 1], x[first + 2], x[first + 3], x[first + 4],
                total[0], total[1], total[2], total[3], total[4],
            )  # fmt: skip
        else:
            for k in range(5):
                if 0 <= first + k < width:
                    _one(g[w], x[first + k], total[k])


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _weight_gradient(x: Array, g: Array, partial: Array, stride: Any, top: Any, left: Any) -> None:
    images, jobs, height = x.shape[0], partial.shape[0], x.shape[1]
    for job in numba.prange(jobs):
        for n in range(job * images // jobs, (job + 1) * images // jobs):
            for h in range(g.shape[1]):
                for k in range(5):
                    row = h * stride - top + k
                    if 0 <= row < height:
                        _row(g[n, h], x[n, row], partial[job, k], stride, left)


def depthwise5_weight_gradient(x: Array, g: Array, stride: int, top: int, left: int) -> Array:
    """The gradient [5, 5, C] of the weight.

    At i, j: the sum over n, h, w of g[n, h, w] * x[n, h * stride - top + i, w * stride - left + j], with
    x [N, H, W, C] and g [N, H', W', C]; what lies outside x is zero.
    """
    jobs = min(x.shape[0], numba.get_num_threads())
    partial = np.zeros((jobs, 5, 5, x.shape[3]), np.float32)
    _weight_gradient(x, g, partial, stride, top, left)
    result: Array = partial.sum(axis=0)
    return result
