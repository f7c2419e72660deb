"""Models that take images as integers of 8 bits and cast them: read in float32, with the cast left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.formats.paddle_types import DTYPE_OF_NUMBER
from fullquant.readers.halves import HALVES
from fullquant.readers.program import PaddleOp, Program

#: Metadata of a model whose file takes uint8: the graph takes float32, and its images hold the integers 0 to 255.
TAKES_PIXELS = "fullquant.takes_pixels"

_FLOATS = frozenset({np.dtype(np.float32), *HALVES})
_ONNX_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_PADDLE_MOVES = frozenset({"transpose", "transpose2", "reshape2", "squeeze2", "unsqueeze2", "assign"})


def pixels_to_float(path: Path, model: ir.Model, image: ir.Value) -> None:
    """Makes the uint8 input of an ONNX model float32, in place; casts to float32 behind it change nothing any more.

    Raises ModelError where an operator other than a cast computes with the integers.
    """
    moved = [image]
    for value in moved:
        if value.is_graph_output():
            raise _refusal(path, str(image.name), "returned")
        for node, index in value.uses():
            if node.op_type in _ONNX_MOVES and index == 0:
                moved.append(node.outputs[0])
            elif node.op_type != "Cast" or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
                raise _refusal(path, str(image.name), f"read by operator {node.op_type!r} ({node.outputs[0].name!r})")
    for value in moved:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    model.metadata_props[TAKES_PIXELS] = "UINT8"


def check_pixels_are_cast(program: Program) -> None:
    """The same for a Paddle program, whose input is read as float32: raises ModelError unless its uint8 is cast."""
    image = program.inputs[0].name
    moved = {image}
    for op in program.ops:
        if moved.isdisjoint(_names(op.inputs.values())):
            continue
        if op.type in _PADDLE_MOVES and moved.isdisjoint(_others(op)):
            moved.add(op.first_output())
        elif op.type != "cast" or _cast_to(op) not in _FLOATS:
            raise _refusal(program.path, image, f"read by operator {op.type!r} ({op.first_output()!r})")
    if not moved.isdisjoint(program.outputs):
        raise _refusal(program.path, image, "returned")


def _cast_to(op: PaddleOp) -> object:
    kind = op.attrs.get("out_dtype")
    return DTYPE_OF_NUMBER.get(kind) if isinstance(kind, int) else kind


def _others(op: PaddleOp) -> set[str]:
    """What an operator reads beside its data."""
    return set(_names(names for parameter, names in op.inputs.items() if parameter != "X"))


def _names(lists: Iterable[Iterable[str]]) -> Iterable[str]:
    return (name for names in lists for name in names)


def _refusal(path: Path, image: str, how: str) -> ModelError:
    return ModelError(
        f"{path}: input {image!r} is uint8, and {how}; only a cast to float32 may read integers: export the model with "
        "such a cast directly behind its input, or with a float32 input"
    )
