"""Running what was written in the real runtimes, beside the float model and the simulation, on the same images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.auto_compression.exporting import ExportedFiles
from fullquant.auto_compression.stages import QuantizedModel
from fullquant.errors import EngineError
from fullquant.evaluation.compare import ComparisonRow, compare_engines
from fullquant.readers.quantized import QuantizedGraph
from fullquant.report.record import ResultRow
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.own_engines import integer_model
from fullquant.runtime.sessions import Session, available_engines, bound_latency, open_session
from fullquant.runtime.simulator import Simulator

log = logging.getLogger("fullquant")
FloatArray = npt.NDArray[np.float32]
Predict = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class _Engine:
    """A row to be: its name in the report, and how it predicts."""

    name: str
    optimised: bool | None
    predict: Predict
    file: Path | None = None
    session: Session | None = None


def verify(
    teacher: GraphModule, quantized: QuantizedModel, files: ExportedFiles, loader: Iterable[Any], *, stage: str,
    shape: tuple[int, ...], probabilities: bool, with_float: bool, only: Collection[str] | None = None,
    progress: bool = True,
) -> list[ResultRow]:  # fmt: skip
    """One row for the simulation, the integer reference and each engine; with_float adds that of the float model.

    loader yields (images, labels); labels of -1 are not counted for top-1. shape: (C, H, W) of one image, for latency.
    only: the engines to run, the integer reference and all that are installed by default.
    """
    student = quantized.student
    student.freeze()
    try:
        engines = [
            _Engine("float", None, Simulator(teacher).predict),
            _Engine("simulated", None, Simulator(student).predict),
            *([_Engine("integer", None, _integer(quantized))] if only is None or "integer" in only else []),
            *_exported(files, available_engines() if only is None else only),
        ]
        rows = compare_engines(
            {_label(e): e.predict for e in engines}, loader, outputs_are_probabilities=probabilities, progress=progress
        )
    finally:
        student.freeze(False)
    wanted = zip(engines, rows, strict=True)
    return [_result(stage, engine, row, shape) for engine, row in wanted if with_float or engine.name != "float"]


def _exported(files: ExportedFiles, wanted: Collection[str]) -> list[_Engine]:
    plans: list[tuple[str, str, bool, Path | None]] = [
        ("onnxruntime", "onnxruntime", False, files.onnx), ("onnxruntime", "onnxruntime", True, files.onnx),
        ("paddle", "paddle", False, files.paddle_model), ("paddle_onednn", "paddle_onednn", True, files.paddle_model),
        ("paddle_json", "paddle", True, files.paddle_json), ("openvino", "openvino", True, files.onnx),
    ]  # fmt: skip
    engines: list[_Engine] = []
    for name, engine, optimise, path in plans:
        if engine not in wanted or path is None:
            continue
        try:
            session = open_session(path, engine, optimize=optimise)
        except EngineError as error:
            log.warning("%s", error)
            engines.append(_Engine(name, optimise, _failing(error), path))
            continue
        engines.append(_Engine(name, optimise, _predict(session), path, session))
    return engines


def _integer(quantized: QuantizedModel) -> Predict:
    """The integer reference of what was written; a bias beyond 32 bits becomes the row's error."""
    try:
        return integer_model(QuantizedGraph(quantized.model, quantized.placement, quantized.qparams)).predict
    except EngineError as error:
        log.warning("%s", error)
        return _failing(error)


def _predict(session: Session) -> Predict:
    (name,) = session.input_names
    return lambda images: np.asarray(session.run({name: images})[0])


def _failing(error: EngineError) -> Predict:
    def predict(images: FloatArray) -> FloatArray:
        raise error

    return predict


def _label(engine: _Engine) -> str:
    return engine.name if engine.optimised is None else f"{engine.name} {'optimised' if engine.optimised else 'plain'}"


def _result(stage: str, engine: _Engine, row: ComparisonRow, shape: tuple[int, ...]) -> ResultRow:
    stage = "float" if engine.name == "float" else stage
    size = sum(p.stat().st_size for p in _files_of(engine.file)) if engine.file is not None else None
    name = engine.name
    if row.accuracy is None:
        return ResultRow(stage, name, engine.optimised, error=row.error)
    found = row.accuracy
    return ResultRow(
        stage, name, engine.optimised,
        top1=_known(found.top1), top1_stderr=_known(found.top1_stderr), top5=_known(found.top5),
        agreement=_known(found.agreement), same_as_simulated=_known(row.same_as_simulated),
        mean_kl=_known(found.mean_kl),
        images=found.count, file="" if engine.file is None else engine.file.name, file_bytes=size,
        latency_ms=_latency(engine.session, shape) if engine.name == "onnxruntime" and engine.optimised else None,
    )  # fmt: skip


def _files_of(path: Path) -> list[Path]:
    """A Paddle program counts with its parameters."""
    return [path, path.with_suffix(".pdiparams")] if path.suffix in (".pdmodel", ".json") else [path]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _latency(session: Session | None, shape: tuple[int, ...]) -> float | None:
    """Median milliseconds of one image (C, H, W) at batch 1."""
    if session is None:
        return None
    image = np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)
    return bound_latency(session, {session.input_names[0]: image})[0]


def float_latency(model: ir.Model, shape: tuple[int, ...]) -> float | None:
    """Median milliseconds of the float graph in ONNX Runtime, one image (C, H, W)."""
    return _latency(open_session(model, "onnxruntime"), shape)
