"""Paddle Lite's x86 interpreter as an engine: a process of the Python that has paddlelite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fullquant.errors import EngineError
from fullquant.formats.framework_pb2 import ProgramDesc
from fullquant.formats.param_stream import write_combined
from fullquant.runtime import sessions
from fullquant.runtime.paddle_lite.converter import INSTALL, find_converter, how_it_ended, interpreter_of, last_words
from fullquant.runtime.paddle_lite.forms import ACTIVATION_PASS, KEPT_APART, interpreter_form
from fullquant.runtime.paddle_lite.source import is_quantized, read_source

Array = npt.NDArray[Any]

_WORKER = Path(__file__).with_name("worker.py")
# The interpreter's conversion to int8 forgets elements unless their number is a multiple of 32 (decision 0015).
_BATCH = 32
_SECONDS = 10  # that a process whose pipe is closed may take to end


def find_python() -> Path:
    """The Python of the paddlelite that the converter belongs to. EngineError where there is none."""
    converter = find_converter()
    python = interpreter_of(converter)
    if python is None:
        raise EngineError(
            f"engine 'paddle_lite' needs the Python package paddlelite, {converter} is not of it; {INSTALL}"
        )
    return python


def is_available() -> bool:
    """Whether the interpreter can be started; nothing is run."""
    try:
        find_python()
    except EngineError:
        return False
    return True


class PaddleLiteSession:
    """A `.pdmodel` with its parameters, float or int8, in Paddle Lite's interpreter on x86.

    optimize=False: every rounding of an int8 file as an operator, float kernels: what the file means.
    optimize=True: its convolutions in Lite's int8 kernels, whose sums saturate in 16 bits unless weights are within
        [-64, 63]; other roundings as operators. Batches are filled up to a multiple of 32, so one image takes the time
        of 32.
    threads: None is one.
    """

    engine = "paddle_lite"

    def __init__(self, model: Path, params: Path, optimize: bool, threads: int | None) -> None:
        python = find_python()
        desc, parameters = read_source(model, params)
        quantized = is_quantized(desc)
        self._int8 = quantized and optimize
        discarded: tuple[str, ...] = ()
        if quantized:
            desc, parameters = interpreter_form(desc, parameters, int8_layers=optimize)
            discarded = (*KEPT_APART, ACTIVATION_PASS) if optimize else KEPT_APART
        self.input_names, self.output_names = _ends(desc)
        self._shape = _declared(desc, self.input_names[0])
        self._folder = Path(tempfile.mkdtemp(prefix="fullquant-lite-"))
        self._log = self._folder / "log"
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        files = _write(self._folder, desc, parameters)
        arguments = [*files, str(threads or 1), "1" if self._int8 else "0", *discarded]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(_WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=self._folder, env=environment,
            )  # fmt: skip
        weakref.finalize(self, _end, self._process)  # runs before the folder goes
        if self._pipe(self._process.stdout).readline() != b"ready\n":
            raise sessions.refusal(self.engine, str(model), self._death())

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: float32 array of any batch size}; the outputs, new arrays."""
        sessions.check_feeds(feeds, self.input_names, self.engine)
        images = np.ascontiguousarray(feeds[self.input_names[0]], dtype=np.float32)
        if len(self._shape) != images.ndim or any(
            a not in (-1, b) for a, b in zip(self._shape, images.shape, strict=True)
        ):
            wanted, given = list(self._shape), list(images.shape)
            raise EngineError(f"engine 'paddle_lite': the input has the shape {given}, the model wants {wanted}")
        count = len(images)
        if self._int8 and count % _BATCH:
            images = np.concatenate([images, np.repeat(images[-1:], -count % _BATCH, axis=0)])
        try:
            outputs = self._exchange(images)
        except (OSError, ValueError):
            raise sessions.refusal(self.engine, "these inputs", self._death()) from None
        return [output[:count] if len(output) == len(images) else output for output in outputs]

    def _exchange(self, images: Array) -> list[Array]:
        to, back = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
        to.write(json.dumps(list(images.shape)).encode() + b"\n")
        to.write(images.tobytes())
        to.flush()
        outputs = []
        for _ in range(int(json.loads(back.readline()))):
            shape = json.loads(back.readline())
            length = 4 * int(np.prod(shape))
            outputs.append(np.frombuffer(_exactly(back, length), dtype=np.float32).reshape(shape).copy())
        return outputs

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None  # both are pipes
        return pipe

    def _death(self) -> EngineError:
        """Why the process ended, in its own words where it said something."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS)
        status = self._process.poll()
        self._process.kill()
        said = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        if status is not None and status < 0 and "[F " not in said:  # what Lite says while all is well is no reason
            return EngineError(how_it_ended(status))
        return EngineError(last_words(said) or "the interpreter does not answer")


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise ValueError(f"{len(data)} of {length} bytes")
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _ends(desc: ProgramDesc) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and the outputs, in the order of their columns."""
    operators = desc.blocks[0].ops
    feeds = [op.outputs[0].arguments[0] for op in operators if op.type == "feed"]
    fetches = [op.inputs[0].arguments[0] for op in operators if op.type == "fetch"]
    if len(feeds) != 1:
        raise EngineError(f"engine 'paddle_lite' runs models with one input, this one has {len(feeds)}")
    return tuple(feeds), tuple(fetches)


def _declared(desc: ProgramDesc, name: str) -> tuple[int, ...]:
    """Shape of a variable, -1 where it is free. The interpreter itself computes with any shape, whatever it means."""
    return next(tuple(v.type.dense_tensor.tensor.dims) for v in desc.blocks[0].vars if v.name == name)


def _write(folder: Path, desc: ProgramDesc, parameters: Mapping[str, Array]) -> list[str]:
    model, params = folder / "model", folder / "params"
    model.write_bytes(desc.SerializeToString())
    with params.open("wb") as stream:
        write_combined(stream, parameters)
    return [str(model), str(params)]
