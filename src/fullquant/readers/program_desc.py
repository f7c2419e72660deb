"""Reads the legacy program format, `.pdmodel` and `__model__`: a serialized ProgramDesc."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from fullquant.errors import ModelError
from fullquant.formats.framework_pb2 import AttrType, BlockDesc, OpDesc, ProgramDesc, Scalar, VarDesc, VarType
from fullquant.formats.paddle_types import DTYPE_OF_NUMBER
from fullquant.readers.program import AttrValue, PaddleOp, Program, Variable, VariableRef
from fullquant.readers.wrong_files import refuse_misnamed

# The member of OpDesc.Attr that holds a value of each type.
_MEMBERS = {
    AttrType.INT: "i",
    AttrType.FLOAT: "f",
    AttrType.STRING: "s",
    AttrType.INTS: "ints",
    AttrType.FLOATS: "floats",
    AttrType.STRINGS: "strings",
    AttrType.BOOLEAN: "b",
    AttrType.BOOLEANS: "bools",
    AttrType.LONG: "l",
    AttrType.LONGS: "longs",
    AttrType.FLOAT64: "float64",
    AttrType.FLOAT64S: "float64s",
}
_NO_PARAMETER = (VarType.FEED_MINIBATCH, VarType.FETCH_LIST, VarType.RAW, VarType.READER)


def parse_program(path: Path) -> ProgramDesc:
    """The raw message of a program file. Raises ModelError where the file is not a ProgramDesc."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    desc = ProgramDesc()
    try:
        desc.ParseFromString(content)
        if not desc.IsInitialized():  # ParseFromString accepts messages that lack required fields
            raise DecodeError("a required field is missing")
    except DecodeError as error:
        refuse_misnamed(path)
        raise ModelError(f"{path}: is not a Paddle program ({error}); the file is damaged, export it again") from None
    if not desc.blocks or not desc.blocks[0].ops:
        refuse_misnamed(path)
        raise ModelError(
            f"{path}: the program has no operators; the file is empty or not a Paddle program: export it again"
        )
    return desc


def load_program(path: Path) -> Program:
    """Reads a legacy program file into the common form. Raises ModelError with file, operator and remedy."""
    desc = parse_program(path)
    try:
        return _program(path, desc.blocks[0])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the program is malformed ({error!r}); export it again") from error


def _program(path: Path, block: BlockDesc) -> Program:
    variables = {var.name: _variable(var) for var in block.vars}
    parameters = [variables[var.name] for var in block.vars if var.persistable and var.type.type not in _NO_PARAMETER]
    feeds: list[tuple[int, str]] = []
    fetches: list[tuple[int, str]] = []
    ops: list[PaddleOp] = []
    for op_desc in block.ops:
        op = _op(op_desc)
        if op.type == "feed":
            feeds.append((_column(op), op.outputs["Out"][0]))
        elif op.type == "fetch":
            fetches.append((_column(op), op.inputs["X"][0]))
        else:
            ops.append(op)
    return Program(
        path=path,
        source_format="program_desc",
        ops=ops,
        inputs=[_known(path, variables, name) for _, name in sorted(feeds)],
        outputs=[name for _, name in sorted(fetches)],
        variables=variables,
        parameters=parameters,
    )


def _variable(var: VarDesc) -> Variable:
    _text(var.name)
    if not var.type.HasField("dense_tensor"):
        return Variable(var.name, None, None)
    tensor = var.type.dense_tensor.tensor
    return Variable(var.name, DTYPE_OF_NUMBER.get(int(tensor.data_type)), tuple(tensor.dims))


def _text(name: object) -> str:
    if not isinstance(name, str):  # protobuf hands out bytes where a string is not UTF-8
        raise TypeError(f"the name {name!r} is not UTF-8")
    return name


def _known(path: Path, variables: dict[str, Variable], name: str) -> Variable:
    if name not in variables:
        raise ModelError(f"{path}: input {name!r} is not among the program's variables; export the model again")
    return variables[name]


def _column(op: PaddleOp) -> int:
    column = op.attrs.get("col", 0)
    return column if isinstance(column, int) else 0


def _op(desc: OpDesc) -> PaddleOp:
    blocks = (AttrType.BLOCK, AttrType.BLOCKS)
    attrs = {_text(attr.name): _attr_value(attr) for attr in desc.attrs if attr.type not in blocks}
    namescope = attrs.get("op_namescope")
    return PaddleOp(
        type=_text(desc.type),
        inputs={_text(var.parameter): tuple(map(_text, var.arguments)) for var in desc.inputs if var.arguments},
        outputs={_text(var.parameter): tuple(map(_text, var.arguments)) for var in desc.outputs},
        attrs=attrs,
        namescope=namescope if isinstance(namescope, str) else "",
        control_flow=any(attr.type in blocks for attr in desc.attrs),
    )


def _attr_value(attr: OpDesc.Attr) -> AttrValue:
    if attr.type == AttrType.VAR:
        return VariableRef(attr.var_name)
    if attr.type == AttrType.VARS:
        return [VariableRef(name) for name in attr.vars_name]
    if attr.type == AttrType.SCALAR:
        return _scalar(attr.scalar)
    if attr.type == AttrType.SCALARS:
        return [_scalar(scalar) for scalar in attr.scalars]
    value = getattr(attr, _MEMBERS[attr.type])
    return value if isinstance(value, bool | int | float | str) else list(value)


def _scalar(scalar: Scalar) -> AttrValue:
    if scalar.type == Scalar.BOOLEAN:
        return scalar.b
    if scalar.type == Scalar.LONG:
        return scalar.i
    return scalar.r if scalar.type == Scalar.FLOAT64 else None
