"""A model file, or a model in memory, opened in one of the runtimes that users deploy to: NumPy in, NumPy out.

Each runtime is imported when it is first asked for, never before: they take seconds, and all but ONNX Runtime are
optional.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.errors import EngineError
from fullquant.graph.layout import TO_LAST, is_in_other_order
from fullquant.readers import ModelFiles, find_model, read_model
from fullquant.runtime.executed import ExecutedGraph

Array: TypeAlias = npt.NDArray[Any]
Engine = Literal["onnxruntime", "paddle", "paddle_onednn", "openvino", "paddle_lite"]
Source: TypeAlias = "str | os.PathLike[str] | ir.Model | bytes"

#: Engines that are part of fullquant, for quantized files: the simulation, and the integer reference in two roundings.
OWN_ENGINES = ("simulated", "integer", "integer_gemmlowp")

# engine -> (module to import, package to install)
_PACKAGES: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "paddle": ("paddle", "paddlepaddle"),
    "paddle_onednn": ("paddle", "paddlepaddle"),
    "openvino": ("openvino", "openvino"),
}
_PADDLE_LITE = "paddle_lite"  # another Python has it: runtime/paddle_lite


class Session(Protocol):
    """An opened model. `engine` names the runtime (or "simulated", "float", "integer" for our own executors)."""

    engine: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: array}; the outputs in the order of `output_names`, as arrays of their own."""
        ...


@runtime_checkable
class TellsExecuted(Protocol):
    """A session that can say what the runtime made of the file."""

    def executed(self) -> ExecutedGraph:
        """The operators that the runtime executes, after its optimisations."""
        ...


def executed(session: Session) -> ExecutedGraph | None:
    """What the runtime made of the file; None where it does not tell (Paddle Lite, Paddle 3's `.json`)."""
    if not isinstance(session, TellsExecuted):
        return None
    try:
        return session.executed()
    except EngineError:
        return None


def available_engines() -> tuple[Engine, ...]:
    """The engines whose packages are installed; nothing is imported."""
    from fullquant.runtime.paddle_lite.session import is_available

    return tuple(
        engine
        for engine in get_args(Engine)
        if (is_available() if engine == _PADDLE_LITE else importlib.util.find_spec(_PACKAGES[engine][0]) is not None)
    )


def open_session(
    path: Source,
    engine: str,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    optimize: bool = True,
    threads: int | None = None,
) -> Session:
    """Opens a model in a runtime on the CPU.

    path: a model file or folder as `read_model` takes it. "onnxruntime" and "openvino" also take an onnx_ir model or
        the bytes of an ONNX file, and run a Paddle file as the ONNX graph that the readers make of it.
    engine: "onnxruntime", "openvino", "paddle" (Paddle Inference without oneDNN: every operator as written),
        "paddle_onednn" (its oneDNN kernels; with the int8 passes where the file holds quantizers) or "paddle_lite" (its
        x86 interpreter in another Python, see runtime/paddle_lite/session.py; optimize: its int8 kernels). Of quantized
        files also "simulated" (fake-quantized in PyTorch), "integer" (numerics.integer) and "integer_gemmlowp" (the
        same with gemmlowp's rounding); they have no optimisations, and PyTorch's threads.
    optimize: False runs the graph as it is written: no graph optimisation in ONNX Runtime, no IR passes in Paddle, no
        low-precision transformations in OpenVINO.
    threads: threads inside an operator; None leaves the runtime's own choice.

    Raises EngineError (runtime unknown, not installed, or refuses the model) and ModelError (no such model).
    """
    if engine in OWN_ENGINES:
        from fullquant.runtime.own_engines import open_own  # PyTorch takes seconds to import

        return open_own(_graph(path, model_filename, params_filename), engine, _describe(path))
    _check_installed(engine)
    if engine in ("paddle", "paddle_onednn", _PADDLE_LITE):
        return _open_paddle(_paddle_files(path, engine, model_filename, params_filename), engine, optimize, threads)
    source = _onnx_source(path, model_filename, params_filename)
    try:
        return _open_onnx(source, engine, optimize, threads)
    except Exception as error:
        raise refusal(engine, _describe(path), error) from error


def bound_latency(
    session: Session, feeds: Mapping[str, Array], warmup: int = 5, repeat: int = 30
) -> tuple[float, float]:
    """(median, 90th percentile) in milliseconds of `repeat` runs on the same feeds, after `warmup` runs not timed."""
    for _ in range(warmup):
        session.run(feeds)
    durations = []
    for _ in range(repeat):
        start = time.perf_counter()
        session.run(feeds)
        durations.append((time.perf_counter() - start) * 1e3)
    median, p90 = np.percentile(durations, [50, 90])
    return float(median), float(p90)


def refusal(engine: str, what: str, error: Exception) -> EngineError:
    """The one-line error for a runtime that does not take a model or an input."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return EngineError(f"engine {engine!r} refuses {what}: {reason}")


def check_feeds(feeds: Mapping[str, Array], names: tuple[str, ...], engine: str) -> None:
    """Raises EngineError unless the feeds have exactly the names of the inputs."""
    if set(feeds) != set(names):
        given, wanted = ", ".join(sorted(feeds)) or "none", ", ".join(names)
        raise EngineError(f"engine {engine!r}: the inputs given are {given}; the model's inputs are {wanted}")


def by_fixed_batch(
    feeds: Mapping[str, Array],
    declared: Mapping[str, Sequence[object]],
    run: Callable[[Mapping[str, Array]], list[Array]],
) -> list[Array]:
    """The outputs of `run`; of a file whose batch is fixed, for other batches, so many images at a time, joined again.

    What does not divide evenly is handed on as it is: the runtime then says what it takes.
    """
    ((name, images),) = feeds.items() if len(feeds) == 1 else [("", np.zeros(0))]
    fixed = declared[name][0] if declared.get(name) else None
    if not isinstance(fixed, int) or fixed < 1 or len(images) in (0, fixed) or len(images) % fixed:
        return run(feeds)
    parts = [run({name: images[start : start + fixed]}) for start in range(0, len(images), fixed)]
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def as_declared(
    feeds: Mapping[str, Array],
    declared: Mapping[str, Sequence[object]],
    halves: Collection[str] = (),
    pixels: Collection[str] = (),
) -> dict[str, Array]:
    """Images [N, C, H, W] in the order [N, H, W, C] for an input that is declared so, as Keras' are; others as is.

    halves: names of the inputs that are float16, for which images are rounded. pixels: of those that are uint8.
    """
    ordered = {
        name: array.transpose(TO_LAST) if is_in_other_order(array.shape, declared.get(name, ())) else array
        for name, array in feeds.items()
    }
    ordered |= {name: array.astype(np.float16) for name, array in ordered.items() if name in halves}
    return ordered | {name: as_pixels(array) for name, array in ordered.items() if name in pixels}


def as_pixels(array: Array) -> Array:
    """The nearest integers 0 to 255, as uint8."""
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


def without_halves(array: Array) -> Array:
    """float16 as float32; anything else as it is."""
    return array.astype(np.float32) if getattr(array, "dtype", None) == np.float16 else array


def _check_installed(engine: str) -> None:
    if engine == _PADDLE_LITE:
        from fullquant.runtime.paddle_lite.session import find_python

        find_python()
        return
    if engine not in _PACKAGES:
        raise EngineError(f"unknown engine {engine!r}; it is one of {', '.join([*get_args(Engine), *OWN_ENGINES])}")
    module, package = _PACKAGES[engine]
    if importlib.util.find_spec(module) is None:
        raise EngineError(f"engine {engine!r} needs {package}, which is not installed; run: pip install {package}")


def _describe(path: Source) -> str:
    if isinstance(path, ir.Model):
        return path.metadata_props.get("fullquant.model_file", "the model in memory")
    return "the model in memory" if isinstance(path, bytes) else str(path)


def _graph(path: Source, model_filename: str | None, params_filename: str | None) -> ir.Model:
    """The canonical graph of a file; a graph is taken as it is."""
    if isinstance(path, ir.Model):
        return path
    if isinstance(path, bytes):
        raise EngineError("our own engines open files and graphs; give the name of the file")
    return read_model(Path(path), model_filename, params_filename)


def _onnx_source(path: Source, model_filename: str | None, params_filename: str | None) -> str | bytes:
    """A file name or the bytes of an ONNX model."""
    if isinstance(path, bytes):
        return path
    if not isinstance(path, ir.Model):
        files = find_model(Path(path), model_filename, params_filename)
        if files.source_format == "onnx":
            return str(files.model)
        path = read_model(str(path), model_filename, params_filename)
    return ir.to_proto(path).SerializeToString()


def _paddle_files(path: Source, engine: str, model_filename: str | None, params_filename: str | None) -> ModelFiles:
    if isinstance(path, (bytes, ir.Model)):
        raise EngineError(f"engine {engine!r} opens files only; write the model with fullquant.writers first")
    files = find_model(Path(path), model_filename, params_filename)
    if files.source_format == "onnx":
        raise EngineError(f"engine {engine!r} runs Paddle programs, {files.model} is ONNX; use engine 'onnxruntime'")
    return files


def _open_onnx(source: str | bytes, engine: str, optimize: bool, threads: int | None) -> Session:
    if engine == "onnxruntime":
        from fullquant.runtime.onnxruntime_session import OnnxRuntimeSession

        return OnnxRuntimeSession(source, optimize, threads)
    from fullquant.runtime.openvino_session import OpenVinoSession

    return OpenVinoSession(source, optimize, threads)


def _open_paddle(files: ModelFiles, engine: str, optimize: bool, threads: int | None) -> Session:
    from fullquant.runtime.paddle_session import PaddleSession

    assert files.params is not None  # only ONNX models have none
    if engine == _PADDLE_LITE:
        from fullquant.runtime.paddle_lite.converter import paddle_files
        from fullquant.runtime.paddle_lite.session import PaddleLiteSession

        return PaddleLiteSession(*paddle_files(files), optimize, threads)
    try:
        return PaddleSession(files.model, files.params, engine, optimize, threads)
    except Exception as error:
        raise refusal(engine, str(files.model), error) from error
