"""Scales and shifts along the last axis disappear into the matrix product in front: layer scale, BatchNormalization."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_float,
    constant_operand,
    constant_value,
    data_input,
    dims,
    graph_of,
    input_at,
    insert_before,
    node_label,
    producer_of,
    remove_from_chain,
    sole_consumer,
)
from fullquant.passes.linear import Float64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Product:
    """x @ weight + bias. weight: [K, N], constant. add: the node of the bias, None without one."""

    node: ir.Node
    weight: Float64
    add: ir.Node | None
    bias: Float64


def fold_matmul_affine(model: ir.Model) -> int:
    """scale * (x @ W + b) + shift -> x @ (W scale) + (b scale + shift), vectors of length N; returns how many.

    The map may stand behind reshapes that keep the last axis: transformers normalize [images * tokens, channels].
    Products with a bias of their own (Gemm) are fold_batch_norm's.
    """
    return sum(_fold(node) for node in list(model.graph))


def _fold(node: ir.Node) -> bool:
    affine = None if node.graph is None else _last_axis_affine(node)
    if affine is None:
        return False
    data, scale, shift = affine
    product = _product_behind(data, node)
    if product is None:
        return False
    count = product.weight.shape[1]
    if scale.size not in (1, count) or not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return False
    scale, shift = np.broadcast_to(scale, count), np.broadcast_to(shift, count)
    _store(product, product.weight * scale, product.bias * scale + shift)
    return remove_from_chain(node)


def _last_axis_affine(node: ir.Node) -> tuple[ir.Value, Float64, Float64] | None:
    """(x, scale, shift) of a node that maps each element of the last axis of x by itself; None for other nodes."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        data = data_input(node)
        found = [constant_value(input_at(node, index)) for index in range(1, 5)]
        parameters = [np.asarray(array, dtype=np.float64) for array in found if array is not None]
        if len(parameters) != 4 or len(dims(data) or ()) != 2 or len([v for v in node.outputs if v.name]) != 1:
            return None
        gain, offset, mean, variance = parameters
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = gain / np.sqrt(variance + attribute_float(node, "epsilon", 1e-5))
        return data, scale, offset - mean * scale
    operand = constant_operand(node) if node.op_type == "Mul" else None
    if operand is None or operand[1].dtype != np.float32:
        return None
    data, array = operand
    sizes = dims(data)
    if (
        data is not node.inputs[0]
        or sizes is None
        or array.ndim > len(sizes)
        or (array.ndim and array.shape[-1] != array.size)
    ):
        return None
    scale = array.reshape(-1).astype(np.float64)
    return data, scale, np.zeros_like(scale)


def _product_behind(value: ir.Value, reader: ir.Node) -> _Product | None:
    """The product whose numbers `value` holds, which only `reader` reads, in the same order along the last axis."""
    while (reshape := producer_of(value, "Reshape")) is not None and sole_consumer(value) is reader:
        before, after = dims(data_input(reshape)), dims(value)
        if not before or not after or before[-1] != after[-1] or not isinstance(after[-1], int):
            return None
        value, reader = data_input(reshape), reshape
    if sole_consumer(value) is not reader:
        return None
    add, bias = producer_of(value, "Add"), np.zeros(1)
    if add is not None:
        operand = constant_operand(add)
        if operand is None or operand[1].size != (operand[1].shape or (1,))[-1]:
            return None
        value, bias = operand[0], operand[1].reshape(-1).astype(np.float64)
        if sole_consumer(value) is not add:
            return None
    product = producer_of(value, "MatMul")
    weight = None if product is None else constant_value(input_at(product, 1))
    if product is None or weight is None or weight.ndim != 2 or constant_value(input_at(product, 0)) is not None:
        return None
    if bias.size not in (1, weight.shape[1]):
        return None
    _log.debug("a scale behind %s folds into it", node_label(product))
    return _Product(product, weight.astype(np.float64), add, bias)


def _store(product: _Product, weight: Float64, bias: Float64) -> None:
    """New constants of the product and its bias; an addition is made where there was none and one is needed."""
    node, graph = product.node, graph_of(product.node)
    old = node.inputs[1]
    assert old is not None
    node.replace_input_with(1, add_initializer(graph, f"{old.name}.folded", weight.astype(np.float32)))
    vector = bias.astype(np.float32)
    if product.add is not None:
        index = 0 if constant_value(product.add.inputs[0]) is not None else 1
        name = f"{getattr(product.add.inputs[index], 'name', node.name)}.folded"
        product.add.replace_input_with(index, add_initializer(graph, name, vector))
    elif np.any(vector):
        reader = next(iter(node.outputs[0].uses()))
        addend = add_initializer(graph, f"{node.name}.bias", vector)
        added = insert_before(reader.node, "Add", [node.outputs[0], addend], like=node.outputs[0])
        reader.node.replace_input_with(reader.idx, added)
