"""Pad disappears into the convolutions and poolings behind it."""

from __future__ import annotations

import logging
import math

import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    attribute_string,
    constant_value,
    consumers,
    data_input,
    input_at,
    ints_constant,
    node_label,
    plain_attributes,
    producer_of,
    prune,
    rank,
    replace_node,
    replace_uses,
    scalar_constant,
)

_log = logging.getLogger(__name__)

#: Operators whose results are never negative.
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})
#: Operators that keep a tensor non-negative.
_KEEPS_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})


def fold_pad(model: ir.Model) -> int:
    """Folds constant padding of height and width into every reader, if all of them can take it exactly.

    Conv takes zeros. AveragePool without padding of its own takes zeros, as many at both ends, and counts
    them. MaxPool pads with minus infinity by itself, so it takes that, zeros only where the input cannot be negative,
    and a repeated border: each window that holds a repeated element holds that element itself.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type == "Pad" and node.domain == "" and node.graph is not None:
            count += _fold(node)
    return count


def _fold(node: ir.Node) -> bool:
    pads, value = _spatial_pads(node), _pad_value(node)
    result = node.outputs[0]
    readers = consumers(result)
    if pads is None or value is None or result.is_graph_output() or not readers:
        _log.debug("%s doesn't pad height and width by constants; kept", node_label(node))
        return False
    if not all(reader.inputs[0] is result and _takes(reader, node, value, pads) for reader in readers):
        _log.debug("%s pads for a reader that cannot do it itself; kept", node_label(node))
        return False
    for reader in readers:
        attributes = plain_attributes(reader)
        own = attribute_ints(reader, "pads", [0, 0, 0, 0])
        attributes["pads"] = [a + b for a, b in zip(own, pads, strict=True)]
        if reader.op_type == "AveragePool":
            attributes["count_include_pad"] = 1
        replace_node(reader, reader.op_type, reader.inputs, attributes)
    replace_uses(result, data_input(node))
    prune(node)
    return True


def _spatial_pads(node: ir.Node) -> list[int] | None:
    """[top, left, bottom, right] of a Pad of an NCHW tensor; None if it crops, pads elsewhere or isn't constant."""
    axes_given, axes_count = input_at(node, 3), rank(node.inputs[0])
    pads = ints_constant(input_at(node, 1))
    axes = ints_constant(axes_given) if axes_given is not None else list(range(axes_count or 0))
    if attribute_string(node, "mode", "constant") not in ("constant", "edge") or axes_count != 4:
        return None
    if pads is None or axes is None:
        return None
    begin, end = [0] * 4, [0] * 4
    for position, axis in enumerate(axes):
        begin[axis % 4], end[axis % 4] = pads[position], pads[position + len(axes)]
    if any(begin[:2]) or any(end[:2]) or min(begin + end) < 0:
        return None
    return begin[2:] + end[2:]


def _pad_value(node: ir.Node) -> float | None:
    if attribute_string(node, "mode", "constant") == "edge":
        return math.nan  # no number: equal to none, below none
    return 0.0 if input_at(node, 2) is None else scalar_constant(node.inputs[2])


def _takes(reader: ir.Node, pad: ir.Node, value: float, pads: list[int]) -> bool:
    """Whether the reader gives the same numbers with the padding as its own attribute."""
    if reader.domain != "" or attribute_string(reader, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if reader.op_type == "Conv":
        weight = constant_value(input_at(reader, 1))
        return value == 0.0 and weight is not None and weight.ndim == 4
    kernel = attribute_ints(reader, "kernel_shape", [])
    own = attribute_ints(reader, "pads", [0, 0, 0, 0])
    # With ceil_mode the last window may start in the padding; runtimes then differ.
    if attribute_int(reader, "ceil_mode", 0) or len(kernel) != 2 or len(list(reader.outputs)) != 1:
        return False
    # Runtimes refuse windows that hold padding only.
    if any(p + o >= kernel[axis % 2] for axis, (p, o) in enumerate(zip(pads, own, strict=True))):
        return False
    if reader.op_type == "AveragePool":
        counted = not any(own) or bool(attribute_int(reader, "count_include_pad", 0))
        # ONNX Runtime 1.23 divides by a wrong number where the two ends differ.
        even = all(pads[axis] + own[axis] == pads[axis + 2] + own[axis + 2] for axis in (0, 1))
        return value == 0.0 and counted and even
    if reader.op_type == "MaxPool":
        if math.isnan(value):
            return all(step == 1 for step in attribute_ints(reader, "dilations", [1]))
        return value <= -math.inf or (value == 0.0 and _is_non_negative(data_input(pad)))
    return False


def _is_non_negative(value: ir.Value) -> bool:
    producer = producer_of(value)
    while producer is not None and producer.domain == "" and producer.op_type in _KEEPS_SIGN:
        producer = producer_of(producer.inputs[0])
    if producer is None or producer.domain != "":
        return False
    bounds = clip_bounds(producer)
    return producer.op_type in _NON_NEGATIVE or (bounds is not None and bounds[1] >= 0.0)
