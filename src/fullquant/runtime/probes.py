"""A temporary copy of a model file with more outputs, opened in a runtime: what it computes on the way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fullquant.errors import EngineError
from fullquant.formats.framework_pb2 import OpDesc, ProgramDesc
from fullquant.readers import ModelFiles
from fullquant.runtime.sessions import Session, open_session

FloatArray = npt.NDArray[np.float32]


@contextmanager
def probed(
    files: ModelFiles, names: Sequence[str], engine: str, *, optimize: bool, threads: int | None = None
) -> Iterator[Session]:
    """A session whose outputs are the file's own and behind them the named values.

    names: values of the file, float32: outputs of DequantizeLinear, variables of a Paddle program.
    Raises EngineError where the runtime refuses the copy, and for Paddle 3's `.json`, which is not copied.
    """
    with tempfile.TemporaryDirectory(prefix="fullquant-probe-") as folder:
        if files.source_format == "onnx":
            copy = Path(folder) / "probed.onnx"
            copy.write_bytes(_with_outputs(files.model, names))
        elif files.source_format == "program_desc" and files.params is not None and files.params.is_file():
            copy = Path(folder) / "probed.pdmodel"
            copy.write_bytes(_with_fetches(files.model, names))
            _link(files.params, copy.with_suffix(".pdiparams"))
        else:
            raise EngineError(f"{files.model}: only ONNX files and .pdmodel with .pdiparams are looked into")
        yield open_session(copy, engine, optimize=optimize, threads=threads)


def observe(session: Session, images: FloatArray, names: Sequence[str]) -> tuple[FloatArray, dict[str, FloatArray]]:
    """(the model's output, {name: value}) of a probed session."""
    first, *others = session.run({session.input_names[0]: images})
    if len(others) != len(names):
        raise EngineError(f"engine {session.engine!r} gave {len(others)} of {len(names)} values on the way")
    return first, dict(zip(names, others, strict=True))


def _with_outputs(path: Path, names: Sequence[str]) -> bytes:
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(proto.SerializeToString())


def _with_fetches(path: Path, names: Sequence[str]) -> bytes:
    program = ProgramDesc.FromString(path.read_bytes())
    operators = program.blocks[0].ops
    last = next(op for op in reversed(operators) if op.type == "fetch")
    column = 1 + max(int(_attributes(op)["col"].i) for op in operators if op.type == "fetch")
    for offset, name in enumerate(names):
        made = operators.add()
        made.CopyFrom(last)
        made.inputs[0].arguments[0] = name
        _attributes(made)["col"].i = column + offset
    return program.SerializeToString()


def _attributes(op: OpDesc) -> Mapping[str, Any]:
    return {attribute.name: attribute for attribute in op.attrs}


def _link(source: Path, place: Path) -> None:
    """The parameters are large: a link where the file system has links."""
    try:
        place.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, place)
