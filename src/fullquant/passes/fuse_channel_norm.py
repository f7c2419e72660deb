"""LayerNormalization over the channels of a map, in the parts that Paddle's ConvNeXt and its kin are written in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    OP_TYPE,
    Array,
    add_initializer,
    attribute_int,
    constant_operand,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    producer_of,
    replace_node,
    scalar_constant,
    sole_consumer,
)


def fuse_channel_norm(model: ir.Model) -> int:
    """(x - mean) / sqrt(variance + epsilon) * gain + offset over axis 1 -> LayerNormalization between transpositions.

    x: [N, C, H, W]; gain, offset: [C, 1, 1] or absent. The square of x - mean is on no useful int8 grid: its range is
    that of x squared, and its mean adds to a small epsilon. Returns the number of normalizations found.
    """
    return sum(_fuse(node) for node in list(model.graph) if node.op_type == "Div" and node.domain == "")


def _fuse(node: ir.Node) -> bool:
    match = None if node.graph is None else _normalized(node)
    if match is None:
        return False
    x, epsilon = match
    sizes = dims(x)
    if sizes is None or len(sizes) != 4 or not isinstance(sizes[1], int):
        return False
    channels, last = sizes[1], node
    gain, last = _parameter(last, "Mul", channels)
    offset, last = _parameter(last, "Add", channels)
    graph = graph_of(node)
    parameters = [
        add_initializer(graph, f"{node.name}.gain", np.ones(channels, np.float32) if gain is None else gain),
        add_initializer(graph, f"{node.name}.offset", np.zeros(channels, np.float32) if offset is None else offset),
    ]
    rows = insert_before(node, "Transpose", [x], {"perm": (0, 2, 3, 1)})
    rows.shape, rows.type = ir.Shape([x.shape[i] for i in (0, 2, 3, 1)]), x.type  # type: ignore[index]
    normal = insert_before(node, "LayerNormalization", [rows, *parameters], {"axis": -1, "epsilon": epsilon}, like=rows)
    fused = replace_node(last, "Transpose", [normal], {"perm": (0, 3, 1, 2)})
    fused.metadata_props.pop(OP_TYPE, None)
    return True


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, epsilon) of a Div that is (x - mean) / sqrt(variance + epsilon) over axis 1."""
    root = producer_of(input_at(node, 1), "Sqrt")
    shifted = None if root is None else producer_of(root.inputs[0], "Add")
    operand = None if shifted is None else constant_operand(shifted)
    if operand is None or operand[1].size != 1:
        return None
    average = producer_of(operand[0], "ReduceMean")
    square = None if average is None or not _over_channels(average) else producer_of(average.inputs[0], "Pow", "Mul")
    x = _centred(input_at(node, 0))
    if square is None or x is None or _centred(square.inputs[0]) is not x:
        return None
    if square.op_type == "Pow":
        if scalar_constant(input_at(square, 1)) != 2.0:
            return None
    elif _centred(square.inputs[1]) is not x:
        return None
    return x, float(operand[1].reshape(()))


def _centred(value: ir.Value | None) -> ir.Value | None:
    """x of a value that is x - ReduceMean(x, axis 1)."""
    difference = producer_of(value, "Sub")
    average = None if difference is None else producer_of(difference.inputs[1], "ReduceMean")
    if difference is None or average is None or average.inputs[0] is not difference.inputs[0]:
        return None
    return difference.inputs[0] if _over_channels(average) else None


def _over_channels(node: ir.Node) -> bool:
    attribute = node.attributes.get("axes")
    axes = ints_constant(input_at(node, 1)) if attribute is None else list(attribute.as_ints())
    return axes in ([1], [-3]) and attribute_int(node, "keepdims", 1) == 1


def _parameter(node: ir.Node, op_type: str, channels: int) -> tuple[Array | None, ir.Node]:
    """(the vector that the only reader multiplies with or adds, that reader); (None, node) where it does not."""
    reader = sole_consumer(node.outputs[0])
    operand = None if reader is None or reader.op_type != op_type else constant_operand(reader)
    if reader is None or operand is None or operand[0] is not node.outputs[0]:
        return None, node
    array = operand[1]
    if array.dtype != np.float32 or array.ndim < 3 or array.shape[-3:] != (channels, 1, 1) or array.size != channels:
        return None, node
    return array.reshape(-1), reader
