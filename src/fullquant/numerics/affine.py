"""The NumPy reference of quantization. Everything faster is tested against these functions."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fullquant.numerics.qparams import FloatArray, IntArray, QParams

_Number = TypeVar("_Number", bound=np.generic)


def _aligned(vector: npt.NDArray[_Number], qparams: QParams, ndim: int) -> npt.NDArray[_Number]:
    """Reshapes a per_channel vector (C,) so that it broadcasts along spec.axis of a tensor with `ndim` axes."""
    if qparams.spec.axis is None:
        return vector
    shape = [1] * ndim
    shape[qparams.spec.axis] = vector.shape[0]
    return vector.reshape(shape)


def quantize(x: npt.ArrayLike, qparams: QParams) -> IntArray:
    """q = clip(round(x / scale) + zero_point, qmin, qmax), int64, same shape as x. Rounds half to even.

    Infinities saturate. ValueError for NaN, which has no integer.
    ONNX QuantizeLinear (which leaves NaN undefined); Paddle quantize_linear with round_type 0.
    """
    array = np.asarray(x, dtype=np.float32)
    missing = int(np.count_nonzero(np.isnan(array)))
    if missing:
        raise ValueError(f"{missing} of {array.size} values are NaN, which no integer stands for")
    scale = _aligned(qparams.scale, qparams, array.ndim)
    zero_point = _aligned(qparams.zero_point, qparams, array.ndim)
    with np.errstate(over="ignore"):  # a quotient beyond float32 is an infinity, and is clipped like one
        steps = np.rint(array / scale)
    # Clipped before the cast: a float beyond int64 has no defined integer.
    low, high = qparams.spec.qmin - zero_point, qparams.spec.qmax - zero_point
    return np.asarray(np.clip(steps, low, high).astype(np.int64) + zero_point, dtype=np.int64)


def dequantize(q: npt.ArrayLike, qparams: QParams) -> FloatArray:
    """x = scale * (q - zero_point), float32, same shape as q. ONNX DequantizeLinear."""
    array = np.asarray(q, dtype=np.int64)
    scale = _aligned(qparams.scale, qparams, array.ndim)
    zero_point = _aligned(qparams.zero_point, qparams, array.ndim)
    return np.asarray((array - zero_point).astype(np.float32) * scale, dtype=np.float32)


def fake_quantize(x: npt.ArrayLike, qparams: QParams) -> FloatArray:
    """dequantize(quantize(x)): x moved to the nearest representable value, clipped to the grid's range."""
    return dequantize(quantize(x, qparams), qparams)
