"""One form for arithmetic with constants: Add and Mul, the constant second."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    constant_operand,
    graph_of,
    node_label,
    replace_node,
)

_log = logging.getLogger(__name__)


def normal_arithmetic(model: ir.Model) -> int:
    """x - c -> x + (-c), x / c -> x * (1/c), c + x -> x + c, c * x -> x * c; floating point only.

    1/c is rounded once to float32, so a quotient may move by one unit in the last place.
    """
    count = 0
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in ("Add", "Sub", "Mul", "Div"):
            continue
        operand = constant_operand(node)
        if operand is None or operand[1].dtype != np.float32:
            continue
        count += _normalise(node, *operand)
    return count


def _normalise(node: ir.Node, data: ir.Value, constant: Array) -> bool:
    constant_first = node.inputs[1] is data
    if node.op_type in ("Add", "Mul"):
        if not constant_first:
            return False
        node_inputs = node.inputs
        node.replace_input_with(0, data)
        node.replace_input_with(1, node_inputs[0])
        return True
    if constant_first:
        _log.debug("%s has its constant first, which has no simpler form", node_label(node))
        return False
    if node.op_type == "Div":
        if np.any(constant == 0):
            _log.debug("%s divides by zero; kept", node_label(node))
            return False
        wanted = (1.0 / constant.astype(np.float64)).astype(np.float32)
    else:
        wanted = -constant
    other = node.inputs[1]
    name = f"{node.name}.{'factor' if node.op_type == 'Div' else 'term'}" if other is None else f"{other.name}"
    replaced = add_initializer(graph_of(node), name, wanted)
    replace_node(node, "Add" if node.op_type == "Sub" else "Mul", [data, replaced])
    return True
