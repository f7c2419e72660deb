"""Linear layers become Gemm(x, B [K,N], C [N]) with transB = 0 and alpha = beta = 1."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_float,
    attribute_int,
    constant_value,
    data_input,
    graph_of,
    input_at,
    node_label,
    rank,
    replace_node,
)
from fullquant.passes.linear import is_normal_gemm

_log = logging.getLogger(__name__)


def normal_gemm(model: ir.Model) -> int:
    """MatMul of a matrix and a constant matrix -> Gemm; alpha, beta and transB of a Gemm -> its constants."""
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "MatMul":
            count += _from_matmul(node)
        elif node.domain == "" and node.op_type == "Gemm":
            count += _normalise(node)
    return count


def _from_matmul(node: ir.Node) -> bool:
    weight = constant_value(input_at(node, 1))
    if weight is None or weight.ndim != 2 or rank(node.inputs[0]) != 2:
        _log.debug("%s isn't a matrix times a constant matrix; kept", node_label(node))
        return False
    replace_node(node, "Gemm", node.inputs)
    return True


def _normalise(node: ir.Node) -> bool:
    """alpha * A B^T + beta * C: constants take alpha, the transposition and beta."""
    weight, bias_value = constant_value(input_at(node, 1)), input_at(node, 2)
    bias = constant_value(bias_value)
    if weight is None or (bias_value is not None and bias is None) or attribute_int(node, "transA", 0):
        _log.debug("%s has computed parameters or a transposed input; kept", node_label(node))
        return False
    matrix = weight.T if attribute_int(node, "transB", 0) else weight
    count = matrix.shape[1]
    plain_bias = bias is None or bias.shape == (count,)
    if is_normal_gemm(node) and plain_bias:
        return False
    if bias is not None and bias.size not in (1, count):
        _log.debug("%s adds a matrix, not one number per column; kept", node_label(node))
        return False
    graph, weight_name = graph_of(node), node.inputs[1]
    assert weight_name is not None
    inputs = [data_input(node), weight_name]
    if not is_normal_gemm(node):
        alpha = attribute_float(node, "alpha", 1.0)
        scaled = (matrix.astype(np.float64) * alpha).astype(np.float32)
        inputs[1] = add_initializer(graph, str(weight_name.name), scaled)
    if bias is not None and bias_value is not None:
        beta = attribute_float(node, "beta", 1.0)
        vector = np.broadcast_to(bias.reshape(-1).astype(np.float64) * beta, count).astype(np.float32)
        inputs.append(add_initializer(graph, str(bias_value.name), vector))
    replace_node(node, "Gemm", inputs)
    return True
