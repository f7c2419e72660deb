"""One form for clipping: Relu for max(x, 0), Clip with both bounds as initializers for the rest."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir

from fullquant.graph.clip import HIGHEST, clip_bounds
from fullquant.graph.edit import (
    add_initializer,
    data_input,
    graph_of,
    input_at,
    node_label,
    producer_of,
    replace_node,
    scalar_constant,
    sole_consumer,
)

_log = logging.getLogger(__name__)


def normal_clip(model: ir.Model) -> int:
    """Min, Max with a scalar -> Clip; clips of clips -> one; Clip(0, none) -> Relu; PRelu of one slope -> LeakyRelu."""
    count = 0
    for node in list(model.graph):
        if node.domain != "" or node.graph is None:
            continue
        if node.op_type == "PRelu":
            count += _leaky(node)
            continue
        bounds = clip_bounds(node)
        if bounds is not None:
            count += _normalise(node, *bounds)
    return count


def _normalise(node: ir.Node, source: ir.Value, low: float, high: float) -> bool:
    inner_node = producer_of(source)
    inner = None if inner_node is None or sole_consumer(source) is not node else clip_bounds(inner_node)
    if inner is not None:
        source, inner_low, inner_high = inner
        # min(max(., low), high) after min(max(., a), b): both bounds of the inner range are clipped by the outer one.
        low, high = min(max(inner_low, low), high), min(max(inner_high, low), high)
    if math.isinf(low) and math.isinf(high):
        return False
    kind = "Relu" if low == 0.0 and math.isinf(high) else "Clip"
    complete = kind == "Relu" or (input_at(node, 1) is not None and input_at(node, 2) is not None)
    if inner is None and node.op_type == kind and complete:
        return False
    inputs = [source]
    if kind == "Clip":
        graph = graph_of(node)
        for name, bound in (("min", low), ("max", high)):
            number = np.float32(np.clip(bound, -HIGHEST, HIGHEST))
            inputs.append(add_initializer(graph, f"{node.name}.{name}", number))
    replace_node(node, kind, inputs)
    return True


def _leaky(node: ir.Node) -> bool:
    slope = scalar_constant(input_at(node, 1))
    if slope is None:
        _log.debug("%s has a slope per channel; kept", node_label(node))
        return False
    replace_node(node, "LeakyRelu", [data_input(node)], {"alpha": slope})
    return True
