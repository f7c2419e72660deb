"""Legacy programs made by hand, message by message: for operators that PaddlePaddle no longer has, and for errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fullquant.formats.framework_pb2 import AttrType, BlockDesc, OpDesc, ProgramDesc, VarType
from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.formats.param_stream import write_combined

Call = tuple[str, Mapping[str, Sequence[str]], Mapping[str, Sequence[str]], Mapping[str, Any]]


def write_program(
    folder: Path,
    calls: Sequence[Call],
    parameters: Mapping[str, np.ndarray] | None = None,
    *,
    input_shape: Sequence[int] = (-1, 3, 6, 8),
    input_dtype: str = "float32",
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    variables: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Writes `model.pdmodel` and `model.pdiparams`. A call is (type, inputs, outputs, attributes)."""
    parameters = parameters or {}
    program = ProgramDesc()
    program.version.version = 2006002
    block = program.blocks.add(idx=0, parent_idx=-1)
    for name in inputs:
        _variable(block, name, np.dtype(input_dtype), input_shape)
    for name, shape in (variables or {}).items():
        _variable(block, name, np.dtype(np.float32), shape)
    for name, array in parameters.items():
        _variable(block, name, array.dtype, array.shape, persistable=True)
    feed = block.vars.add(name="feed", persistable=True)
    feed.type.type = VarType.FEED_MINIBATCH
    for column, name in enumerate(inputs):
        _op(block, ("feed", {"X": ["feed"]}, {"Out": [name]}, {"col": column}))
    for call in calls:
        _op(block, call)
    for column, name in enumerate(outputs):
        _op(block, ("fetch", {"X": [name]}, {"Out": ["fetch"]}, {"col": column}))
    (folder / "model.pdmodel").write_bytes(program.SerializeToString())
    with (folder / "model.pdiparams").open("wb") as stream:
        write_combined(stream, parameters)
    return folder


def unary(kind: str, **attributes: Any) -> list[Call]:
    """One operator from "x" to "y"."""
    return [(kind, {"X": ["x"]}, {"Out": ["y"]}, attributes)]


def _variable(block: BlockDesc, name: str, dtype: np.dtype, shape: Sequence[int], persistable: bool = False) -> None:
    var = block.vars.add(name=name, persistable=persistable)
    var.type.type = VarType.DENSE_TENSOR
    var.type.dense_tensor.tensor.data_type = NUMBER_OF_DTYPE[dtype]
    var.type.dense_tensor.tensor.dims.extend(shape)


def _op(block: BlockDesc, call: Call) -> None:
    kind, inputs, outputs, attributes = call
    op = block.ops.add(type=kind)
    for parameter, arguments in inputs.items():
        op.inputs.add(parameter=parameter, arguments=arguments)
    for parameter, arguments in outputs.items():
        op.outputs.add(parameter=parameter, arguments=arguments)
    for name, value in attributes.items():
        _attribute(op.attrs.add(name=name), value)


def _attribute(attr: OpDesc.Attr, value: Any) -> None:
    if isinstance(value, bool):
        attr.type, attr.b = AttrType.BOOLEAN, value
    elif isinstance(value, int):
        attr.type, attr.i = AttrType.INT, value
    elif isinstance(value, float):
        attr.type, attr.f = AttrType.FLOAT, value
    elif isinstance(value, str):
        attr.type, attr.s = AttrType.STRING, value
    elif isinstance(value, dict):  # a block of control flow
        attr.type, attr.block_idx = AttrType.BLOCK, value["block"]
    elif all(isinstance(item, int) for item in value):
        attr.type = AttrType.INTS
        attr.ints.extend(value)
    else:
        attr.type = AttrType.FLOATS
        attr.floats.extend(value)
