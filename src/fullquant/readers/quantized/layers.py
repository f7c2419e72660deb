"""Layers that the Paddle format writes in pieces: the bias of a convolution or a linear layer is an addition there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_ints,
    constant_value,
    ints_constant,
    plain_attributes,
    producer_of,
    prune,
    rank,
    replace_node,
    replace_uses,
    sole_consumer,
    value_name,
)
from fullquant.numerics.qparams import QParams


def fold_moved_constants(graph: ir.Graph, weights: dict[str, QParams]) -> None:
    """Reshape and Transpose of an initializer become an initializer; the scales of a weight follow its axis."""
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        array = constant_value(source)
        if source is None or array is None or node.op_type not in ("Reshape", "Transpose"):
            continue
        grid = weights.get(value_name(source))
        if node.op_type == "Transpose":
            order = attribute_ints(node, "perm", list(range(array.ndim))[::-1])
            moved = array.transpose(order)
        else:
            shape = ints_constant(node.inputs[1])
            if shape is None or (grid is not None and grid.spec.axis is not None):
                continue
            order, moved = [], array.reshape(shape)
        value = _moved(graph, source, moved)
        if grid is not None:
            weights[value_name(value)] = _along(grid, order)
        replace_uses(node.outputs[0], value)
        prune(node)


def _moved(graph: ir.Graph, source: ir.Value, array: Array) -> ir.Value:
    """A new initializer in the place of `source`, with its name where nothing else reads that."""
    name = value_name(source)
    if len(list(source.uses())) == 1:
        graph.initializers.pop(name)
        source.name = f"{name}.moved"
    return add_initializer(graph, name, array)


def _along(grid: QParams, order: list[int]) -> QParams:
    """The grid of a transposed weight."""
    if grid.spec.axis is None:
        return grid
    return QParams(replace(grid.spec, axis=order.index(grid.spec.axis)), grid.scale, grid.zero_point)


def merge_biases(graph: ir.Graph, rounded: Collection[str]) -> None:
    """Conv + constant per channel -> Conv with bias; MatMul of two axes + constant vector -> Gemm.

    rounded: tensors between the two that have a grid of their own, where the addition is an operator of its own.
    """
    for node in list(graph):
        if node.op_type == "Add":
            _merge_bias(graph, node, rounded)


def _merge_bias(graph: ir.Graph, add: ir.Node, rounded: Collection[str]) -> None:
    for index in (0, 1):
        product, bias = add.inputs[index], add.inputs[1 - index]
        layer = producer_of(product, "Conv", "MatMul")
        array = constant_value(bias)
        if layer is None or product is None or bias is None or array is None or array.dtype != np.float32:
            continue
        weight = constant_value(layer.inputs[1])
        if weight is None or sole_consumer(product) is not add or value_name(product) in rounded:
            continue
        is_conv = layer.op_type == "Conv"
        channels = weight.shape[0 if is_conv else 1]
        wanted = (1, channels) + (1,) * (weight.ndim - 2) if is_conv else (channels,)
        if len(layer.inputs) != 2 or array.shape != wanted or (not is_conv and rank(layer.inputs[0]) != 2):
            continue
        _replace(graph, layer, add, bias, array.reshape(-1))
        return


def _replace(graph: ir.Graph, layer: ir.Node, add: ir.Node, bias: ir.Value, array: Array) -> None:
    name, properties = str(layer.name), dict(layer.metadata_props)
    vector = bias if rank(bias) == 1 else _moved(graph, bias, array)
    kind = "Conv" if layer.op_type == "Conv" else "Gemm"
    made = replace_node(add, kind, [*layer.inputs, vector], plain_attributes(layer) if kind == "Conv" else {})
    # Decisions name the layer as the reader of its input.
    made.name = name
    made.metadata_props.clear()
    made.metadata_props.update(properties)
