"""Weights rounded one after the other, each error made good by those that are still free."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fullquant.runtime.kernels.fake_quantize import FAST, Array, float32


@numba.njit(fastmath=FAST, cache=True)
def _subtract(row: Array, factors: Array, error: Any) -> None:
    for j in range(row.shape[0]):
        row[j] -= error * factors[j]


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _compensated(w: Array, factor: Array, scale: Array, qlow: Any, qhigh: Any) -> None:
    groups, rows, size = w.shape
    for job in numba.prange(groups * rows):
        g, r = job // rows, job % rows
        row, s = w[g, r], scale[g, r]
        for i in range(size):
            q = np.rint(row[i] / s)
            q = qlow if q < qlow else q
            q = qhigh if q > qhigh else q
            error = (row[i] - q * s) / factor[g, i, i]
            row[i] = q * s
            _subtract(row[i + 1 :], factor[g, i, i + 1 :], error)


def compensated_rounding(w: Array, factor: Array, scale: Array, qlow: float, qhigh: float) -> None:
    """Rounds w (G, R, K) in place to scale (G, R) * integers in [qlow, qhigh].

    factor (G, K, K): the upper Cholesky factor U of the inverse of H = E[x x'] of each group's inputs. Rounding column
    i by e = (w_i - q_i) / U_ii moves the columns j > i by -e * U_ij, which keeps E[(w x - q x)^2] least
    (Frantar et al. 2022, arXiv:2210.17323, equations 2 and 3). Multiply-adds: R * K^2 / 2 a group.
    """
    _compensated(w, factor, scale, *float32(qlow, qhigh))


# Channels whose sums stay in the cache while all samples are added to them.
_CHANNELS = 128


@numba.njit(fastmath=FAST, cache=True)
def _add_product(a: Array, b: Array, total: Array) -> None:
    for c in range(a.shape[0]):
        total[c] += a[c] * b[c]


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _channel_products(x: Array, total: Array) -> None:
    rows, taps, channels = x.shape
    for part in numba.prange((channels + _CHANNELS - 1) // _CHANNELS):
        first, last = part * _CHANNELS, min(channels, (part + 1) * _CHANNELS)
        for r in range(rows):
            for i in range(taps):
                for j in range(i, taps):
                    _add_product(x[r, i, first:last], x[r, j, first:last], total[i, j, first:last])


def channel_products(x: Array) -> Array:
    """[C, T, T]: for each channel the sum over rows of x x', x (rows, T, C). Multiply-adds: rows * T^2 / 2 * C."""
    _, taps, channels = x.shape
    total = np.zeros((taps, taps, channels), np.float32)
    _channel_products(x, total)
    upper = total.transpose(2, 0, 1)
    lower = np.tril(upper.transpose(0, 2, 1), -1)
    return np.ascontiguousarray(np.triu(upper) + lower)
