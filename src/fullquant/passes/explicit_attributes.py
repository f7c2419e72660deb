"""Convolution and pooling carry every attribute, so that later stages need no defaults."""

from __future__ import annotations

import logging
from typing import Any

import onnx_ir as ir

from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    attribute_string,
    constant_value,
    dims,
    input_at,
    node_label,
    plain_attributes,
)

_log = logging.getLogger(__name__)


def explicit_attributes(model: ir.Model) -> int:
    """Gives two-dimensional Conv, AveragePool and MaxPool all their attributes, and auto_pad the pads it stands for.

    SAME padding depends on the input size unless the stride is 1; where that size is unknown the node stays as it is.
    """
    count = 0
    for node in model.graph:
        if node.domain == "" and node.op_type in _DEFAULTS:
            count += _complete(node)
    return count


#: Operator -> attributes that are integers, with their defaults. Source: ONNX operator specification, opset 20.
_DEFAULTS: dict[str, dict[str, int]] = {
    "Conv": {"group": 1},
    "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
    "MaxPool": {"ceil_mode": 0, "storage_order": 0},
}


def _complete(node: ir.Node) -> bool:
    kernel = _kernel_shape(node)
    if kernel is None or len(kernel) != 2:
        _log.debug("%s isn't two-dimensional or its kernel is unknown; its attributes stay", node_label(node))
        return False
    strides, dilations = attribute_ints(node, "strides", [1, 1]), attribute_ints(node, "dilations", [1, 1])
    pads = _explicit_pads(node, kernel, strides, dilations)
    if pads is None:
        _log.debug("%s pads by the input size, which is unknown; auto_pad stays", node_label(node))
        return False
    wanted: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    # AveragePool has had dilations since opset 19 only; without them it can be written in older ones.
    if node.op_type != "AveragePool" or dilations != [1, 1]:
        wanted["dilations"] = dilations
    wanted |= {
        **{name: attribute_int(node, name, default) for name, default in _DEFAULTS[node.op_type].items()},
    }
    found = {name: list(value) if isinstance(value, tuple | list) else value
             for name, value in plain_attributes(node).items()}  # fmt: skip
    if found == wanted:
        return False
    node.attributes.clear()
    for name, value in wanted.items():
        node.attributes[name] = ir.AttrInt64s(name, value) if isinstance(value, list) else ir.AttrInt64(name, value)
    return True


def _kernel_shape(node: ir.Node) -> list[int] | None:
    if "kernel_shape" in node.attributes:
        return attribute_ints(node, "kernel_shape", [])
    weight = constant_value(input_at(node, 1)) if node.op_type == "Conv" else None
    return None if weight is None else list(weight.shape[2:])


def _explicit_pads(node: ir.Node, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int] | None:
    """[top, left, bottom, right]; None where auto_pad needs an unknown input size.

    SAME: the output has ceil(size / stride) elements; the odd zero goes to the end (SAME_UPPER) or the beginning.
    """
    mode = attribute_string(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return attribute_ints(node, "pads", [0, 0, 0, 0])
    if mode == "VALID":
        return [0, 0, 0, 0]
    sizes = (dims(node.inputs[0]) or (None,) * 4)[2:]
    begin, end = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if not isinstance(size, int) and stride != 1:
            return None
        reach = (extent - 1) * dilation + 1
        last = 0 if stride == 1 or not isinstance(size, int) else ((size + stride - 1) // stride - 1) * stride - size
        total = max(0, reach - 1 if stride == 1 else last + reach)
        begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        end.append(total - begin[-1])
    return begin + end
