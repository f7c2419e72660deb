"""Operators that move or pick values: the integers stay, unless the output has another grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fullquant.graph.edit import attribute_string, input_at, scalar_constant
from fullquant.runtime.integer.elementwise import all_values, make_table
from fullquant.runtime.integer.tensors import Array, IntegerTensor, Job, Kernel, Operand, RefusalError, storage
from fullquant.runtime.torch_ops import build_operation

#: Operators that torch computes on float tensors only; they run on q - zero_point, whose 0 is the real 0.
_ON_FLOATS = frozenset({"MaxPool", "Pad", "Resize"})
MOVES = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "Identity",
    "Split", "Gather", "Expand", "Tile", "Concat", "ReduceMax", "ReduceMin", "DepthToSpace", "Resize",
})  # fmt: skip


def move(job: Job, extra: Sequence[Any] = ()) -> Kernel:
    """The torch operation on integers; operands of another grid than the output's go through a table first.

    extra: constant inputs of other types (indices), which follow the operands.
    """
    _refuse_blends(job)
    operation = build_operation(job.node)
    convert = [_converter(operand, job) for operand in job.operands]
    floats = job.node.op_type in _ON_FLOATS
    zero = int(job.grid.zero_point)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array | Sequence[Array]:
        left = list(tensors)
        arguments = []
        for operand, to_output in zip(job.operands, convert, strict=True):
            q = left.pop(0).q if operand.constant is None else operand.constant.astype(storage(operand.grid))
            tensor = torch.from_numpy(np.asarray(to_output(q)))
            arguments.append(tensor.to(torch.float32) - zero if floats else tensor)
        result = operation(*arguments, *extra)
        results = result if isinstance(result, tuple | list) else [result]
        stored = [((r + zero).to(tensor.dtype) if floats else r).numpy() for r in results]
        return stored if len(stored) > 1 else stored[0]

    return kernel


def _converter(operand: Operand, job: Job) -> Any:
    """From the operand's integers to the output's; nothing where both have one grid."""
    if operand.grid.spec.axis is not None:
        raise RefusalError("a constant that it moves has a scale per channel")
    same = (
        float(operand.grid.scale) == job.scale_out
        and int(operand.grid.zero_point) == int(job.grid.zero_point)
        and operand.grid.spec.qmin >= job.low
        and operand.grid.spec.qmax <= job.high
        and storage(operand.grid) == storage(job.grid)
    )
    return (lambda q: q) if same else make_table(operand.grid, all_values(operand.grid), job)


def _refuse_blends(job: Job) -> None:
    """A Resize that interpolates, and a Pad with other numbers than 0, compute values that are on no grid."""
    node = job.node
    if node.op_type == "Resize" and attribute_string(node, "mode", "nearest") != "nearest":
        raise RefusalError("an interpolation that is not nearest has no integer form")
    if node.op_type == "Pad" and input_at(node, 2) is not None and scalar_constant(input_at(node, 2)) != 0.0:
        raise RefusalError("it pads with another number than 0")
