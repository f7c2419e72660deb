"""Tensors in NHWC between two transposes, as Keras models have them in ONNX files, become NCHW; so does the image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    attribute_ints,
    constant_value,
    data_input,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    node_label,
    plain_attributes,
    prune,
    replace_node,
    take_over,
    value_name,
)
from fullquant.graph.layout import INPUT_LAYOUT, TO_FIRST, TO_LAST, is_channels_last

_log = logging.getLogger(__name__)

#: The place of each axis of NHWC in NCHW.
_MOVED = {0: 0, 1: 2, 2: 3, 3: 1}
#: Computed element by element, so the order of axes does not matter to them.
_ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "LeakyRelu", "Elu", "PRelu", "Gelu", "Mish", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Softplus", "Cast", "Identity",
    "Dropout",
})  # fmt: skip


@dataclass
class _Region:
    """Nodes that compute on NHWC tensors, in order, and where it ends: transposes back, means over the image."""

    nodes: list[ir.Node] = field(default_factory=list)
    ends: list[ir.Node] = field(default_factory=list)


def channels_first(model: ir.Model) -> int:
    """Removes Transpose(0,2,3,1) ... Transpose(0,3,1,2) around operators that have no order of axes; returns how many.

    Means over height and width end such a region as well. An image input of [N, H, W, C] that the model transposes
    before anything else becomes [N, C, H, W], and the model's metadata say so.
    """
    count = 0
    graph = model.graph
    if len(graph.inputs) == 1 and is_channels_last(dims(graph.inputs[0])):
        image = graph.inputs[0]
        region = _region(image)
        if region is not None and any(node.op_type == "Transpose" for node in region.ends):
            sizes = list(image.shape or [])
            _rewrite(region, {image: image})
            image.shape = ir.Shape([sizes[axis] for axis in TO_FIRST])
            model.metadata_props[INPUT_LAYOUT] = "NHWC"
            count += 1
    for node in list(graph):
        if node.graph is None or not _is_transpose(node, TO_LAST):
            continue
        region = _region(node.outputs[0])
        if region is not None:
            _rewrite(region, {node.outputs[0]: data_input(node)})
            prune(node)
            count += 1
    return count


def _is_transpose(node: ir.Node, order: tuple[int, ...]) -> bool:
    return node.op_type == "Transpose" and node.domain == "" and tuple(attribute_ints(node, "perm", [])) == order


def _region(start: ir.Value) -> _Region | None:
    """Everything between `start` and the ends; None where a reader needs its axes in the order that they have."""
    found, pending, seen = _Region(), [start], {start}
    while pending:
        value = pending.pop()
        readers = [node for node, _ in value.uses()]
        if value.is_graph_output() or not readers:
            return None
        for node in readers:
            if _is_transpose(node, TO_FIRST) or _is_image_mean(node) or _is_vector(node):
                if node not in found.ends:
                    found.ends.append(node)
                continue
            if node in found.nodes:
                continue
            if not _has_no_order(node):
                _log.debug("%s computes on NHWC and needs it; the transposes are kept", node_label(node))
                return None
            found.nodes.append(node)
            fresh = [output for output in node.outputs if output.name and list(output.uses()) and output not in seen]
            if node.outputs[0].is_graph_output():
                return None
            pending += fresh
            seen.update(fresh)
    inside = {output for node in found.nodes for output in node.outputs} | {start}
    if any(not _is_known(value, inside) for node in found.nodes for value in _tensors(node)):
        return None
    return found if found.ends else None


def _tensors(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None and constant_value(value) is None)


def _is_known(value: ir.Value, inside: set[ir.Value]) -> bool:
    """Whether a tensor that the region reads has an NCHW form: it is of the region, or another transpose's."""
    producer = value.producer()
    return value in inside or (producer is not None and _is_transpose(producer, TO_LAST))


def _has_no_order(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type == "Concat":
        constants = [constant_value(value) for value in node.inputs]
        return all(constant is None or constant.ndim == 4 for constant in constants)
    if node.op_type == "Pad":
        pads = ints_constant(input_at(node, 1))
        return input_at(node, 3) is None and pads is not None and len(pads) == 8
    constants = [constant_value(value) for value in node.inputs]
    return node.op_type in _ELEMENTWISE and all(c is None or c.ndim <= 4 for c in constants)


def _is_image_mean(node: ir.Node) -> bool:
    if node.op_type not in ("ReduceMean", "ReduceMax") or node.domain != "":
        return False
    return sorted(axis % 4 for axis in _axes(node)) == [1, 2]


def _is_vector(node: ir.Node) -> bool:
    """Whether [N, 1, 1, C] becomes [N, C], for which the order of axes is the same as from [N, C, 1, 1]."""
    if node.op_type == "Squeeze" and node.domain == "":
        return sorted(axis % 4 for axis in _axes(node)) == [1, 2]
    sizes = dims(node.inputs[0])
    if sizes is None or list(sizes[1:3]) != [1, 1] or node.domain != "":
        return False
    target = ints_constant(input_at(node, 1)) if node.op_type == "Reshape" else None
    flat = node.op_type == "Flatten" and attribute_int(node, "axis", 1) == 1
    return flat or (target is not None and len(target) == 2 and target in ([0, sizes[3]], [-1, sizes[3]], [0, -1]))


def _axes(node: ir.Node) -> list[int]:
    return (ints_constant(input_at(node, 1)) or []) if len(node.inputs) > 1 else attribute_ints(node, "axes", [])


def _rewrite(region: _Region, first: dict[ir.Value, ir.Value]) -> None:
    """first: {value in NHWC: the same in NCHW}; other transposes into the region are looked through."""
    for node in region.nodes:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if constant_value(value) is not None:
                _permute_constant(node, index)
                continue
            producer = value.producer()
            if value in first:
                node.replace_input_with(index, first[value])
            elif producer is not None and _is_transpose(producer, TO_LAST):
                node.replace_input_with(index, data_input(producer))
                prune(producer)
        if node.op_type == "Concat":
            moved = _MOVED[attribute_int(node, "axis", 0) % 4]
            node.attributes["axis"] = ir.AttrInt64("axis", moved)
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[axis] for axis in TO_FIRST])
    for node in region.ends:
        _end(node, first.get(data_input(node), data_input(node)))


def _permute_constant(node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    array = constant_value(value)
    assert array is not None
    assert value is not None
    if node.op_type == "Pad":
        if index == 1:
            pads = array.reshape(2, 4)[:, list(TO_FIRST)].reshape(-1)
            node.replace_input_with(1, add_initializer(graph_of(node), value_name(value), pads))
    elif array.size > 1:
        moved = array.reshape([1] * (4 - array.ndim) + list(array.shape)).transpose(TO_FIRST)
        node.replace_input_with(index, add_initializer(graph_of(node), value_name(value), moved))


def _end(node: ir.Node, source: ir.Value) -> None:
    if node.op_type == "Transpose":
        result = node.outputs[0]
        if not result.is_graph_output():
            for reader, index in list(result.uses()):
                reader.replace_input_with(index, source)
            prune(node)
        elif source.producer() is not None and not source.is_graph_output():
            take_over(source, result)
        else:
            replace_node(node, "Identity", [source])
        return
    if node.op_type in ("Reshape", "Flatten"):
        node.replace_input_with(0, source)
        return
    attributes = {name: value for name, value in plain_attributes(node).items() if name != "axes"}
    axes = add_initializer(graph_of(node), f"{node.name}.axes", np.asarray([2, 3], np.int64))
    if node.op_type != "Squeeze" and attribute_int(node, "keepdims", 1):
        kept = insert_before(node, node.op_type, [source, axes], attributes)
        kept.type = source.type
        replace_node(node, "Transpose", [kept], {"perm": TO_LAST})
    else:
        replace_node(node, node.op_type, [source, axes], attributes)
