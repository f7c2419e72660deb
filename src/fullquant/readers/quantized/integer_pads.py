"""Pad of integers, as our ONNX writer puts it: Pad of floats between quantizers of the same grid again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import (
    add_initializer,
    input_at,
    insert_before,
    node_label,
    plain_attributes,
    producer_of,
    prune,
    replace_uses,
    scalar_constant,
    taken_names,
    value_name,
)
from fullquant.readers.quantized.grids import tensor_name


def float_pads(graph: ir.Graph) -> None:
    """q -> Pad -> readers of integers becomes q -> DequantizeLinear -> Pad -> QuantizeLinear -> readers, in place."""
    for node in list(graph):
        integers = node.inputs[0] if node.op_type == "Pad" else None
        quantizer = None if integers is None else _quantizer(integers)
        if integers is None or quantizer is None:
            continue
        grid = quantizer.inputs[1:3]
        scale, zero_point = scalar_constant(input_at(quantizer, 1)), scalar_constant(input_at(quantizer, 2)) or 0.0
        filling = 0.0 if input_at(node, 2) is None else scalar_constant(node.inputs[2])
        if scale is None or filling is None:
            raise ModelError(f"{node_label(node)} pads integers with a value or a scale that is no constant")
        base, result = tensor_name(value_name(integers).removesuffix(".clamped")), node.outputs[0]
        wanted = next((tensor_name(value_name(u.node.outputs[0])) for u in result.uses()), f"{value_name(result)}.real")
        floats = _dequantized(node, integers, grid, f"{base}.dequantized")
        value = add_initializer(graph, f"{wanted}.filling", np.float32(scale * (filling - zero_point)))
        name = wanted if wanted not in taken_names(graph) else f"{wanted}.real"
        padded = insert_before(
            node, "Pad", [floats, node.inputs[1], value, *node.inputs[3:]], plain_attributes(node), output=name
        )
        padded.type = ir.TensorType(ir.DataType.FLOAT)
        again = insert_before(node, "QuantizeLinear", [padded, *grid], output=f"{name}.quantized", like=result)
        replace_uses(result, again)
        prune(node)


def _quantizer(integers: ir.Value) -> ir.Node | None:
    """The QuantizeLinear in front, through Clip; None for floats."""
    producer = producer_of(integers)
    while producer is not None and producer.op_type == "Clip":
        producer = producer_of(producer.inputs[0])
    return producer if producer is not None and producer.op_type == "QuantizeLinear" else None


def _dequantized(node: ir.Node, integers: ir.Value, grid: Sequence[ir.Value | None], name: str) -> ir.Value:
    """The DequantizeLinear of the integers that is there, else a new one."""
    known = next((u.node.outputs[0] for u in integers.uses() if u.node.op_type == "DequantizeLinear"), None)
    if known is not None:
        return known
    return insert_before(node, "DequantizeLinear", [integers, *grid], output=name)
