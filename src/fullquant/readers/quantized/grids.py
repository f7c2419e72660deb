"""Scale and zero point of a quantizer in a file, and the grid that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import Array, attribute_int, constant_value, input_at, node_label
from fullquant.numerics.qparams import (
    ACTIVATION_MANTISSAS,
    POWERS_OF_TWO,
    WEIGHT_MANTISSAS,
    QParams,
    QuantSpec,
    short_scale,
)

_SUFFIX = re.compile(r"\.(?:quantized|dequantized)(?:_\d+)?$")


def tensor_name(name: str) -> str:
    """The tensor that a variable belongs to: our writers append `.quantized` and `.dequantized`, and a number."""
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def read_grid(node: ir.Node, like: Array | None = None) -> QParams:
    """The grid of a QuantizeLinear or DequantizeLinear, without mantissas.

    like: the constant that is dequantized; its shape tells the axis from a scale of one element.
    uint8 with zero point 128 is read as the symmetric int8 grid that it stores (q = stored - 128).
    """
    scale = constant_value(input_at(node, 1))
    if scale is None or scale.dtype != np.float32:
        raise ModelError(f"{node_label(node)}: the scale is no float32 constant, so it cannot be read back")
    given = constant_value(input_at(node, 2))
    # Without a zero point QuantizeLinear writes uint8; DequantizeLinear then reads whatever integers it gets.
    storage: np.dtype[Any] = np.dtype(np.uint8) if given is None else given.dtype
    if given is None and like is not None:
        storage = like.dtype
    if storage not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise ModelError(f"{node_label(node)}: integers of type {storage} cannot be read back, only int8 and uint8")
    axis = attribute_int(node, "axis", 1)
    if scale.size == 1 and (scale.ndim == 0 or like is None or like.shape[axis] != 1):
        scale, axis_of_spec = scale.reshape(()), None
    elif like is None:
        raise ModelError(f"{node_label(node)}: an activation with a scale per channel cannot be simulated")
    else:
        axis_of_spec = axis % like.ndim
    zero_point = np.zeros(scale.shape, np.int64) if given is None else given.astype(np.int64).reshape(scale.shape)
    return _grid(node, scale, zero_point, storage == np.dtype(np.uint8), axis_of_spec)


def _grid(node: ir.Node, scale: Array, zero_point: Array, unsigned: bool, axis: int | None) -> QParams:
    middle = 128 if unsigned else 0
    if np.all(zero_point == middle):
        return QParams(QuantSpec(-128, 127, axis=axis), scale, np.zeros_like(zero_point))
    if axis is not None:
        raise ModelError(f"{node_label(node)}: zero points per channel other than {middle} cannot be simulated")
    low, high = (0, 255) if unsigned else (-128, 127)
    return QParams(QuantSpec(low, high, symmetric=False), scale, zero_point)


def same_grid(first: QParams, second: QParams) -> bool:
    """Whether the two have the same integers, scales and zero points."""
    return (
        first.spec == second.spec
        and np.array_equal(first.scale, second.scale)
        and np.array_equal(first.zero_point, second.zero_point)
    )


def narrow(params: QParams, low: int, high: int) -> QParams:
    """The same scale on a smaller symmetric grid."""
    return QParams(replace(params.spec, qmin=low, qmax=high), params.scale, params.zero_point)


def with_mantissas(grids: Iterable[QParams], *, weights: bool) -> tuple[float, ...]:
    """The mantissas that all these scales have: powers of two, short scales (decision 0005), or none in particular.

    The simulation keeps logarithms of scales; with mantissas it has the very scale of the file.
    """
    scales = [params.scale.reshape(-1) for params in grids]
    if not scales:
        return ()
    flat = np.concatenate(scales)
    for mantissas in (POWERS_OF_TWO, WEIGHT_MANTISSAS if weights else ACTIVATION_MANTISSAS):
        if np.array_equal(short_scale(flat, mantissas), flat):
            return mantissas
    return ()


def on_mantissas(params: QParams, mantissas: tuple[float, ...]) -> QParams:
    """The same grid, its scales declared to be such."""
    return QParams(replace(params.spec, mantissas=mantissas), params.scale, params.zero_point)
