"""Nodes that return their input unchanged go."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    constant_value,
    dims,
    input_at,
    ints_constant,
    node_label,
    rank,
    remove_from_chain,
)

_log = logging.getLogger(__name__)


def remove_identity(model: ir.Model) -> int:
    """Removes Identity, inference Dropout, and operators whose arguments make them return their input.

    These are x+0, x*1, Cast to the same dtype, Pad by nothing, Concat of one, Transpose in order, Reshape and its
    relatives to the same shape, pooling by one pixel, Slice of everything. Names of graph outputs stay.
    """
    count = 0
    for node in list(model.graph):
        rule = _RULES.get(node.op_type)
        if node.domain != "" or rule is None or not rule(node):
            continue
        if remove_from_chain(node):
            count += 1
        else:
            _log.debug("%s returns its input but joins two names of the graph's border; kept", node_label(node))
    return count


def _dropout(node: ir.Node) -> bool:
    training = constant_value(input_at(node, 2))
    return (training is None or not training.any()) and all(not list(mask.uses()) for mask in node.outputs[1:])


def _cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype is not None and source.dtype == attribute_int(node, "to", 0)


def _pad(node: ir.Node) -> bool:
    pads = ints_constant(input_at(node, 1))
    return pads is not None and not any(pads)


def _concat(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _transpose(node: ir.Node) -> bool:
    order = attribute_ints(node, "perm", [])
    return bool(order) and order == sorted(order)


def _same_shape(node: ir.Node) -> bool:
    """Reshape and its relatives keep the order of elements, so equal shapes mean equal tensors."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    return before is not None and before == after and None not in before


def _neutral(element: float, second_only: bool) -> Callable[[ir.Node], bool]:
    def rule(node: ir.Node) -> bool:
        for constant, data in ((1, 0),) if second_only else ((1, 0), (0, 1)):
            array = constant_value(node.inputs[constant])
            if array is not None and bool(np.all(array == element)) and _keeps_shape(node, data):
                # remove_from_chain keeps input 0.
                if data == 1:
                    first, second = node.inputs
                    node.replace_input_with(0, second)
                    node.replace_input_with(1, first)
                return True
        return False

    return rule


def _keeps_shape(node: ir.Node, data: int) -> bool:
    """Whether the constant operand doesn't broadcast the other one to a larger shape."""
    value, constant = node.inputs[data], constant_value(node.inputs[1 - data])
    if value is None or constant is None or constant_value(value) is not None:
        return False
    if constant.size == 1:
        return constant.ndim == 0 or constant.ndim <= (rank(value) or 0)
    before, after = dims(value), dims(node.outputs[0])
    return before is not None and before == after and None not in before


def _pooling(node: ir.Node) -> bool:
    kernel = attribute_ints(node, "kernel_shape", [0])
    return (
        all(size == 1 for size in (*kernel, *attribute_ints(node, "strides", [1])))
        and not any(attribute_ints(node, "pads", [0]))
        and all(not list(value.uses()) for value in node.outputs[1:])
    )


def _global_pooling(node: ir.Node) -> bool:
    shape = dims(node.inputs[0])
    return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])


def _slice(node: ir.Node) -> bool:
    steps = ints_constant(input_at(node, 4)) if input_at(node, 4) is not None else [1]
    return steps is not None and all(step == 1 for step in steps) and _same_static_shape(node)


def _same_static_shape(node: ir.Node) -> bool:
    """Equal shapes with every size but the batch known: equal names elsewhere could hide a cut of one element."""
    before = dims(node.inputs[0])
    return before is not None and all(isinstance(size, int) for size in before[1:]) and _same_shape(node)


_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": lambda node: True,
    "Dropout": _dropout,
    "Cast": _cast,
    "Pad": _pad,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Expand": _same_shape,
    "Slice": _slice,
    "Add": _neutral(0.0, second_only=False),
    "Sub": _neutral(0.0, second_only=True),
    "Mul": _neutral(1.0, second_only=False),
    "Div": _neutral(1.0, second_only=True),
    "AveragePool": _pooling,
    "MaxPool": _pooling,
    "GlobalAveragePool": _global_pooling,
    "GlobalMaxPool": _global_pooling,
}
