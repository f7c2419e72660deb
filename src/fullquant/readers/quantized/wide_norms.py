"""Layer normalization in parts, as our writers put it where it is over many values: one operator again."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_ints,
    dims,
    graph_of,
    input_at,
    ints_constant,
    producer_of,
    replace_node,
    scalar_constant,
    sole_consumer,
)


def join_wide_norms(graph: ir.Graph) -> None:
    """The parts that `writers.wide_norms` makes become LayerNormalization with gain 1, in place.

    Left alone, each part would be an operator that computes in float.
    """
    for node in list(graph):
        if node.graph is not None and node.op_type == "Div":
            _join(node)


def _join(node: ir.Node) -> None:
    deviation, epsilon = producer_of(node.inputs[0], "Sub"), _epsilon(node)
    rows = None if deviation is None else producer_of(deviation.inputs[0], "Reshape")
    back = sole_consumer(node.outputs[0])
    if deviation is None or epsilon is None or rows is None or back is None or back.op_type != "Reshape":
        return
    shape, sizes = ints_constant(input_at(back, 1)), dims(rows.inputs[0])
    if _mean_of(deviation.inputs[1]) is not rows.outputs[0] or shape is None or sizes is None:
        return
    split = ints_constant(input_at(rows, 1)) or []
    axis = len(split) - 2
    inner = list(sizes[axis:])
    if not 0 <= axis < len(sizes) or shape[axis:] != inner or math.prod(split[axis:]) != math.prod(shape[axis:]):
        return
    gain = add_initializer(graph_of(node), f"{rows.name}.gain", np.ones(shape[axis:], np.float32))
    name = rows.name
    joined = replace_node(back, "LayerNormalization", [rows.inputs[0], gain], {"axis": axis, "epsilon": epsilon})
    joined.name = name


def _epsilon(node: ir.Node) -> float | None:
    """Of d / sqrt(mean(mean(d * d)) + epsilon); None for anything else."""
    root = producer_of(node.inputs[1], "Sqrt")
    total = None if root is None else producer_of(root.inputs[0], "Add")
    for spread, constant in () if total is None else (tuple(total.inputs), tuple(reversed(total.inputs))):
        square = producer_of(_mean_of(spread), "Mul")
        if square is not None and all(value is node.inputs[0] for value in square.inputs):
            return scalar_constant(constant)
    return None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """x where the value is its mean over the last axis, then over the last but one; None for anything else."""
    for expected in (2, 1):
        node = producer_of(value, "ReduceMean")
        sizes = None if node is None else dims(node.inputs[0])
        if node is None or sizes is None:
            return None
        axes = ints_constant(input_at(node, 1)) or attribute_ints(node, "axes", [])
        if [axis % len(sizes) for axis in axes] != [len(sizes) - expected]:
            return None
        value = node.inputs[0]
    return value
