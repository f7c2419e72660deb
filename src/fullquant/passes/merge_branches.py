"""The sum of parallel convolutions becomes one convolution (RepVGG, PPLCNetV2 and the like, exported as trained)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_int,
    attribute_ints,
    attribute_string,
    constant_value,
    data_input,
    graph_of,
    input_at,
    node_label,
    plain_attributes,
    producer_of,
    replace_node,
    sole_consumer,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Branch:
    """A convolution with constant weights [M, C/group, h, w]; pads: [top, left, bottom, right]."""

    node: ir.Node
    weight: Array
    bias: Array | None
    pads: list[int]


def merge_branches(model: ir.Model) -> int:
    """conv(x, V) + conv(x, W) -> conv(x, V + W), the smaller kernel framed with zeros; returns the number of merges.

    Both must read the same tensor with the same strides and groups, be read by the sum alone, and put the frame's
    kernel where the other one is: pads_V - pads_W zeros on each side. Exact but for float rounding; in integers it
    saves the roundings of the branches.
    """
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Add" and len(node.inputs) == 2:
            count += _merge(node)
    return count


def _merge(add: ir.Node) -> bool:
    branches = [_branch(value, add) for value in add.inputs]
    if branches[0] is None or branches[1] is None or branches[0].node is branches[1].node:
        return False
    large, small = sorted((branches[0], branches[1]), key=lambda branch: branch.weight.size, reverse=True)
    if data_input(large.node) is not data_input(small.node) or _layout(large) != _layout(small):
        return False
    frame = [outer - inner for outer, inner in zip(large.pads, small.pads, strict=True)]
    framed = [small.weight.shape[2 + axis] + frame[axis] + frame[2 + axis] for axis in (0, 1)]
    if min(frame) < 0 or framed != list(large.weight.shape[2:]):
        _log.debug("%s adds convolutions whose kernels do not lie on each other; kept", node_label(add))
        return False
    widths = ((0, 0), (0, 0), (frame[0], frame[2]), (frame[1], frame[3]))
    weight = large.weight.astype(np.float64) + np.pad(small.weight.astype(np.float64), widths)
    inputs = [data_input(large.node), _stored(large, 1, weight)]
    biases = [branch.bias.astype(np.float64) for branch in (large, small) if branch.bias is not None]
    if biases:
        inputs.append(_stored(large, 2, np.sum(biases, axis=0)))
    replace_node(add, "Conv", inputs, plain_attributes(large.node))
    return True


def _branch(value: ir.Value | None, add: ir.Node) -> _Branch | None:
    node = producer_of(value, "Conv")
    if node is None or value is None or sole_consumer(value) is not add:
        return None
    weight, bias = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    if weight is None or weight.ndim != 4 or (bias is None and input_at(node, 2) is not None):
        return None
    if attribute_string(node, "auto_pad", "NOTSET") != "NOTSET" or set(attribute_ints(node, "dilations", [1])) != {1}:
        return None
    return _Branch(node, weight, bias, attribute_ints(node, "pads", [0, 0, 0, 0]))


def _layout(branch: _Branch) -> tuple[object, ...]:
    """What must agree: strides, groups, channels and type."""
    strides = attribute_ints(branch.node, "strides", [1, 1])
    return (*strides, attribute_int(branch.node, "group", 1), *branch.weight.shape[:2], branch.weight.dtype)


def _stored(branch: _Branch, index: int, array: Array) -> ir.Value:
    old = input_at(branch.node, index)
    stem = f"{branch.node.name}.bias" if old is None else str(old.name)
    return add_initializer(graph_of(branch.node), f"{stem}.merged", array.astype(branch.weight.dtype))
