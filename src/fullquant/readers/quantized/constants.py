"""Quantized constants of a file: integers behind a DequantizeLinear become float initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import Array, add_initializer, constant_value, input_at, node_label, prune, replace_uses
from fullquant.numerics import affine
from fullquant.numerics.qparams import FloatArray, QParams
from fullquant.readers.quantized.grids import narrow, read_grid, tensor_name

_WEIGHTED = ("Conv", "Gemm", "MatMul")


def read_constants(graph: ir.Graph) -> tuple[dict[str, QParams], dict[str, FloatArray]]:
    """Replaces every dequantized constant in place; ({weight: its grid}, {int32 bias: its scale, () or (O,)}).

    Weights are on [-127, 127]; on [-64, 63] if all of the file are; on [-128, 127] where one holds -128.
    """
    weights: dict[str, QParams] = {}
    biases: dict[str, FloatArray] = {}
    layers: set[str] = set()
    span = [0, 0]
    for node in list(graph):
        stored = constant_value(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None:
            continue
        reads_weight = any(use.idx == 1 and use.node.op_type in _WEIGHTED for use in node.outputs[0].uses())
        if stored.dtype == np.int32:
            scale = _bias_scale(node)
            name = _replace(graph, node, _dequantized_bias(stored, scale))
            biases[name] = scale
            continue
        params = read_grid(node, stored)
        integers = _integers(stored, params)
        name = _replace(graph, node, affine.dequantize(integers, params))
        if params.spec.symmetric:
            params = narrow(params, -128 if integers.min(initial=0) == -128 else -127, 127)
        weights[name] = params
        if reads_weight:
            layers.add(name)
            span = [min(span[0], int(integers.min(initial=0))), max(span[1], int(integers.max(initial=0)))]
    if layers and span[0] >= -64 and span[1] <= 63:
        weights = {n: narrow(p, -64, 63) if n in layers and p.spec.symmetric else p for n, p in weights.items()}
    return weights, biases


def _integers(stored: Array, params: QParams) -> Array:
    """q in the numbers of the grid: uint8 stores q + 128 for a symmetric one."""
    offset = 128 if stored.dtype == np.uint8 and params.spec.symmetric else 0
    return np.asarray(stored.astype(np.int64) - offset)


def _bias_scale(node: ir.Node) -> FloatArray:
    scale, zero_point = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    if scale is None or (zero_point is not None and np.any(zero_point != 0)):
        raise ModelError(f"{node_label(node)}: an int32 constant needs a constant scale and no zero point")
    return np.asarray(scale, dtype=np.float32)


def _dequantized_bias(stored: Array, scale: FloatArray) -> FloatArray:
    return np.asarray(stored.astype(np.float32) * scale, dtype=np.float32)


def _replace(graph: ir.Graph, node: ir.Node, array: FloatArray) -> str:
    """The float initializer takes the place of the node; it has the name of the constant that was quantized."""
    source = node.inputs[0]
    assert source is not None
    wanted = tensor_name(str(source.name))
    result = node.outputs[0]
    if len(list(source.uses())) == 1 and str(source.name) == wanted:
        graph.initializers.pop(wanted)
        source.name = f"{wanted}.integers"
    value = add_initializer(graph, wanted, array)
    replace_uses(result, value)
    prune(node)
    return str(value.name)
