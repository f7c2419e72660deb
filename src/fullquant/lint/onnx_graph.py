"""Looking at an ONNX QDQ graph: what is quantized, with which numbers, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]


def quantizers(graph: ir.Graph) -> Iterator[ir.Node]:
    """QuantizeLinear and DequantizeLinear nodes."""
    return (node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The value at an input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def content(value: ir.Value | None) -> Array | None:
    """The content of a constant, None for anything else."""
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def known(node: ir.Node, index: int) -> Array:
    """Scale (1) or zero point (2) of a quantizer; one that is missing or computed counts as 1 or 0."""
    array = content(input_at(node, index))
    return np.asarray(2 - index) if array is None else array


def same(first: Array, second: Array) -> bool:
    """Equal in shape, type and content."""
    return first.shape == second.shape and first.dtype == second.dtype and bool(np.array_equal(first, second))


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == kind else None


def dequantizer_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value."""
    return _maker(value, "DequantizeLinear")


def quantizer_behind(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that makes a DequantizeLinear's integers, through clips and moves of integers."""
    value = node.inputs[0]
    while value is not None:
        producer = value.producer()
        if producer is None or producer.op_type == "QuantizeLinear":
            return producer
        value = input_at(producer, 0)
    return None


def reaches_quantizer(node: ir.Node) -> bool:
    """Whether a reader is QuantizeLinear, or a clamp in front of one that a kernel may take in."""
    if node.op_type == "QuantizeLinear":
        return True
    return node.op_type in ("Relu", "Clip") and any(reaches_quantizer(u.node) for u in node.outputs[0].uses())


def stored_weight(node: ir.Node) -> tuple[ir.Node, Array] | None:
    """(DequantizeLinear, integers) of a layer's weight, None where it is not stored as integers."""
    dequantizer = dequantizer_of(input_at(node, 1))
    integers = None if dequantizer is None else content(dequantizer.inputs[0])
    return None if dequantizer is None or integers is None else (dequantizer, integers)


def bias_of(node: ir.Node) -> tuple[ir.Value, Array, Array | None] | None:
    """(value, array, scale) of a layer's bias: integers with their scale, or floats with None."""
    value = input_at(node, 2)
    if node.op_type == "MatMul":
        added = behind_bias(node)
        value = next((v for v in added.inputs if v is not node.outputs[0]), None) if added is not node else None
    dequantizer = dequantizer_of(value)
    if dequantizer is not None:
        integers = content(dequantizer.inputs[0])
        return None if integers is None or value is None else (value, integers.ravel(), known(dequantizer, 1))
    floats = content(value)
    return None if floats is None or value is None else (value, floats.ravel(), None)


def behind_bias(node: ir.Node) -> ir.Node:
    """The Add of a constant vector behind a MatMul, else the layer itself."""
    users = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(users) != 1 or users[0].node.op_type != "Add":
        return node
    other = next((v for v in users[0].node.inputs if v is not node.outputs[0]), None)
    dequantizer = dequantizer_of(other)
    array = content(other if dequantizer is None else dequantizer.inputs[0])
    return users[0].node if array is not None and array.ndim == 1 else node


def channel_axis(node: ir.Node, rank: int) -> int:
    """The axis of the output channels in a layer's weights."""
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get("transB")
    return 0 if transposed is not None and transposed.as_int() else rank - 1


def axis_of(dequantizer: ir.Node, rank: int) -> int:
    """The axis along which a DequantizeLinear has its scales."""
    attribute = dequantizer.attributes.get("axis")
    return (1 if attribute is None else attribute.as_int()) % rank


def largest_products(node: ir.Node, data: ir.Node, dequantizer: ir.Node, integers: Array) -> npt.NDArray[np.float64]:
    """Per output channel, the largest sum of products: sum |q_w - z_w| times the largest |q_x - z_x|."""
    axis = channel_axis(node, integers.ndim)
    zero_w, zero_x = np.asarray(known(dequantizer, 2), np.float64), np.asarray(known(data, 2))
    if zero_w.shape == (integers.shape[axis],):
        zero_w = zero_w.reshape([-1 if a == axis else 1 for a in range(integers.ndim)])
    elif zero_w.size != 1:
        zero_w = np.zeros(())  # found by the rule of zero points
    others = tuple(a for a in range(integers.ndim) if a != axis)
    spread = np.abs(integers.astype(np.float64) - zero_w).sum(axis=others)
    limits = np.iinfo(zero_x.dtype if zero_x.dtype.kind in "iu" and zero_x.ndim == 0 else np.uint8)
    zero = float(zero_x.ravel()[0]) if zero_x.size else 0.0
    return np.asarray(spread * max(limits.max - zero, zero - limits.min), dtype=np.float64)
