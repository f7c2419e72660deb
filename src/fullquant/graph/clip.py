"""Operators that clamp: Relu, Clip, and Min or Max with a constant."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import constant_operand, data_input, input_at, node_label, scalar_constant

_log = logging.getLogger(__name__)

#: The largest float32.
HIGHEST = float(np.finfo(np.float32).max)


def clip_bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """(x, low, high) of a node that computes min(max(x, low), high); infinite where there is no bound. Else None."""
    if node.domain != "":
        return None
    if node.op_type == "Relu":
        return data_input(node), 0.0, math.inf
    if node.op_type == "Clip":
        low = -math.inf if input_at(node, 1) is None else scalar_constant(node.inputs[1])
        high = math.inf if input_at(node, 2) is None else scalar_constant(node.inputs[2])
        if low is None or high is None:
            _log.debug("%s has computed bounds; kept", node_label(node))
            return None
        # Beyond the largest float32 there is no bound: exporters write it where they have none.
        return data_input(node), -math.inf if low <= -HIGHEST else low, math.inf if high >= HIGHEST else high
    operand = constant_operand(node) if node.op_type in ("Min", "Max") else None
    if operand is None or operand[1].size != 1 or operand[1].ndim > len(operand[0].shape or ()):
        return None
    bound = float(operand[1].reshape(()))
    return (operand[0], bound, math.inf) if node.op_type == "Max" else (operand[0], -math.inf, bound)
