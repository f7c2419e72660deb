"""Tensors in NHWC between two transposes, as Keras models have them in ONNX files, become NCHW; so does the image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    constant_value,
    data_input,
    dims,
    graph_of,
    insert_before,
    plain_attributes,
    prune,
    replace_node,
    take_over,
    value_name,
)
from fullquant.graph.layout import INPUT_LAYOUT, TO_FIRST, TO_LAST, is_channels_last
from fullquant.passes.channels_last_region import Region, find_region, is_transpose

#: The place of each axis of NHWC in NCHW.
_MOVED = {0: 0, 1: 2, 2: 3, 3: 1}


def channels_first(model: ir.Model) -> int:
    """Removes Transpose(0,2,3,1) ... Transpose(0,3,1,2) around operators that have no order of axes; returns how many.

    Means over height and width end such a region as well. An image input of [N, H, W, C] that the model transposes
    before anything else becomes [N, C, H, W], and the model's metadata say so.
    """
    count = 0
    graph = model.graph
    if len(graph.inputs) == 1 and is_channels_last(dims(graph.inputs[0])):
        image = graph.inputs[0]
        region = find_region(image)
        if region is not None and any(node.op_type == "Transpose" for node in region.ends):
            sizes = list(image.shape or [])
            _rewrite(region)
            image.shape = ir.Shape([sizes[axis] for axis in TO_FIRST])
            model.metadata_props[INPUT_LAYOUT] = "NHWC"
            count += 1
    for node in list(graph):
        if node.graph is None or not is_transpose(node, TO_LAST):
            continue
        region = find_region(node.outputs[0])
        if region is not None:
            _rewrite(region)
            count += 1
    return count


def _rewrite(region: Region) -> None:
    """Gives every tensor of the region its NCHW form."""
    first = {value: _channels_first_form(value) for value in region.starts}
    for node in region.nodes:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if constant_value(value) is not None:
                _permute_constant(node, index)
            elif value in first:
                node.replace_input_with(index, first[value])
        if node.op_type == "Concat":
            moved = _MOVED[attribute_int(node, "axis", 0) % 4]
            node.attributes["axis"] = ir.AttrInt64("axis", moved)
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[axis] for axis in TO_FIRST])
    for node in region.ends:
        _end(node, first.get(data_input(node), data_input(node)))
    for value in region.starts:
        producer = value.producer()
        if producer is not None:
            prune(producer)


def _channels_first_form(start: ir.Value) -> ir.Value:
    """The NCHW form of a tensor at which a region starts; the image input is turned itself."""
    producer = start.producer()
    if producer is None:
        return start
    if producer.op_type == "Transpose":
        return data_input(producer)
    sizes = list(start.shape or [])
    if producer.op_type == "Unsqueeze":
        op_type, form = "Unsqueeze", np.asarray([2, 3], np.int64)
    else:
        op_type, form = "Reshape", np.asarray([0, -1, 1, 1], np.int64)
    kept = add_initializer(graph_of(producer), f"{producer.name}.form", form)
    made = insert_before(producer, op_type, [data_input(producer), kept], {})
    made.type = start.type
    made.shape = ir.Shape([sizes[axis] for axis in TO_FIRST]) if sizes else None
    return made


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
