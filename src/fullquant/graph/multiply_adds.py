"""Multiply-adds of a graph: one for each product of an activation and a weight (or of two activations) that is summed.

    Conv            |y| * C_in / group * k      k: elements of the kernel; |y|: of the output, strides included
    ConvTranspose   |x| * C_out / group * k     each input element is multiplied by every weight of its group
    Gemm            M * N * K
    MatMul          |y| * K                     batched: |y| holds the batch

A dilation spreads the kernel and does not change k. Products with padded zeros count, as is usual; additions of biases,
BatchNormalization, activations, pooling and element-wise operators do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from fullquant.graph.edit import attribute_int, dims, input_at

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def multiply_adds(node: ir.Node) -> int | None:
    """Of one node, over its whole batch; 0 for operators that are not counted, None where sizes are not known."""
    if node.op_type not in COUNTED or node.domain not in ("", "ai.onnx"):
        return 0
    first, second = dims(input_at(node, 0)), dims(input_at(node, 1))
    result = dims(node.outputs[0])
    if not first or not second:
        return None
    if node.op_type == "Conv":
        return _product(result, second[1:])
    if node.op_type == "ConvTranspose":
        return _product(first, second[1:])
    if node.op_type == "Gemm":
        return _product(result, first[:1] if attribute_int(node, "transA", 0) else first[1:])
    return _product(result, first[-1:])


def multiply_add_kind(node: ir.Node) -> str:
    """The operator, with the convolutions of one input channel for each output kept apart: "Conv depthwise"."""
    weight = dims(input_at(node, 1)) if node.op_type == "Conv" else None
    depthwise = bool(weight) and attribute_int(node, "group", 1) > 1 and weight is not None and weight[1] == 1
    return "Conv depthwise" if depthwise else node.op_type


def at_batch_one(model: ir.Model, batch: str = "N") -> ir.Model:
    """A copy of the graph with the symbolic batch of its input set to 1; shapes of computed values are left out."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([1 if str(getattr(d, "value", d)) == batch else d for d in value.shape])
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    return copy


def _product(*sizes: Sequence[int | str | None] | None) -> int | None:
    """The product of all sizes; None where one is not known."""
    total = 1
    for part in sizes:
        if part is None or any(not isinstance(size, int) for size in part):
            return None
        total *= math.prod(size for size in part if isinstance(size, int))
    return total
