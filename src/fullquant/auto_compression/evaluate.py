"""Accuracy of any model file, float or int8, in the runtimes that are installed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from fullquant.auto_compression.embedded import resolve_embedded
from fullquant.auto_compression.loaders import (
    check_images,
    check_labels,
    check_pixels,
    free_or_fixed,
    image_sizes,
    validation_loader,
    with_image,
)
from fullquant.config import Config, Global, load_config
from fullquant.errors import ConfigError, DataError, EngineError, ModelError
from fullquant.evaluation.accuracy import Predict
from fullquant.evaluation.compare import FLOAT, ComparisonRow, compare_engines
from fullquant.readers import OUTPUT_INDEX, ModelFiles, find_model, read_model
from fullquant.readers.pixels import TAKES_PIXELS
from fullquant.report.record import ResultRow
from fullquant.runtime.sessions import OWN_ENGINES, Session, available_engines, bound_latency, open_session

log = logging.getLogger("fullquant")

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# How an engine is run where nobody says: ONNX Runtime as the file means it and as the processor computes it.
_DEFAULT_MODES: Mapping[str, tuple[bool, ...]] = {
    "onnxruntime": (False, True), "paddle": (False,), "paddle_onednn": (True,), "openvino": (True,),
    "paddle_lite": (False, True),
}  # fmt: skip
ALL = "all"


@dataclass(frozen=True)
class _Model:
    """A model on disk. graph: what the readers made of a Paddle program; ONNX files are opened as they are.

    image: [C, H, W] of the input, None where free; classes: how many. None where the file does not say.
    pixels: whether its input is uint8. output: which of the file's outputs has the classes.
    """

    files: ModelFiles
    graph: ir.Model | None
    quantized: bool
    probabilities: bool
    image: tuple[int | None, ...] | None
    classes: int | None
    pixels: bool = False
    output: int = 0

    def session(self, engine: str, optimise: bool) -> Session:
        if engine in ("onnxruntime", "openvino", *OWN_ENGINES) and self.graph is not None:
            return open_session(self.graph, engine, optimize=optimise)
        params = None if self.files.params is None or self.files.params.is_dir() else self.files.params.name
        if self.files.source_format == "onnx":
            return open_session(self.files.model, engine, optimize=optimise)
        return open_session(
            self.files.model.parent, engine,
            model_filename=self.files.model.name, params_filename=params, optimize=optimise,
        )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """One row to be: where it runs, and what went wrong already."""

    engine: str
    optimise: bool | None
    session: Session | None
    error: str = ""

    @property
    def name(self) -> str:
        if self.optimise is None:
            return self.engine
        return f"{self.engine} {'optimised' if self.optimise else 'plain'}"


def evaluate(
    config: str | Path | Mapping[str, Any] | Config,
    model_dir: str | Path | None = None,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    engines: Sequence[str] = ("onnxruntime",),
    optimize: bool | None = False,
    total_images: int | None = None,
    reference: str | Path | None = None,
    progress: bool = True,
) -> list[ResultRow]:
    """Top-1, top-5 and latency of one model on the validation images of a configuration: a row for each engine.

    model_dir, model_filename, params_filename: the model, in place of the configuration's; a Paddle program in either
        form or an ONNX file, float or int8.
    engines: "onnxruntime", "paddle", "paddle_onednn", "openvino", "paddle_lite"; of quantized models also "simulated",
        "integer" and "integer_gemmlowp", see the user guide. "all" stands for all that are installed and take the
        format, with "simulated" and "integer" in front of a quantized model's. Paddle programs run in ONNX Runtime and
        OpenVINO as the graph that the readers make of them.
    optimize: the runtimes' graph optimisations; None chooses for each engine (ONNX Runtime: without and with them).
    total_images: only so many validation images, spread evenly over their list; the same ones each time.
    reference: another model (usually the float one) that agreement and mean_kl are measured against.

    An engine that refuses the model is a row with its error. The stage of a row is "float" or "int8", by the file.
    Raises ConfigError, ModelError, DataError, and EngineError for an engine that is unknown or not installed.
    """
    settings = config if isinstance(config, Config) else load_config(config)
    if model_dir is not None:
        section = settings.global_section.with_model(str(model_dir), model_filename, params_filename)
    else:
        section = settings.global_section
    settings = resolve_embedded(Config(global_section=section), progress=progress)
    section = settings.global_section
    model = _open_model(section.model_path, section.model_filename, section.params_filename, section)
    plans = _plans(model, engines, optimize)
    section = with_image(section, model.image, model.files.model)
    against = None if reference is None else _open_model(Path(reference), None, None, section)
    with validation_loader(section, total_images) as loader:
        check_images(loader, model.image, model.files.model)
        if model.pixels:
            check_pixels(loader, model.files.model)
        check_labels(loader, model.classes, model.files.model)
        predictors = {plan.name: _predict(model, plan) for plan in plans}
        if against is not None:
            predictors = {FLOAT: _predict(against, _plan(against, "onnxruntime", False)), **predictors}
        rows = compare_engines(predictors, loader, outputs_are_probabilities=model.probabilities, progress=progress)
        if loader.skipped == len(loader.images):
            raise DataError(f"{loader.images.source}: none of its images can be read; see the warnings before")
        shape = loader.preprocess.shape
    measured = rows[1:] if against is not None else rows
    return [_row(model, plan, row, shape) for plan, row in zip(plans, measured, strict=True)]


def _open_model(path: Path, model_filename: str | None, params_filename: str | None, section: Global) -> _Model:
    """section: says the input's shape and the output that is meant."""
    files, output = find_model(path, model_filename, params_filename), section.output_name
    if files.source_format == "onnx":
        return _onnx_model(files, output)
    graph = read_model(path, model_filename, params_filename, output_name=output)
    if section.input_shape is not None:
        shape = {str(graph.graph.inputs[0].name): section.input_shape}
        graph = read_model(path, model_filename, params_filename, shape, output)
    return _Model(files, graph, *_facts(graph), output=int(graph.metadata_props.get(OUTPUT_INDEX, 0)))


def _onnx_model(files: ModelFiles, output_name: str | None) -> _Model:
    """Only looked at: operators of other domains are the runtime's business, not the readers'."""
    try:
        proto = onnx.load(files.model, load_external_data=False)
        model = ir.from_proto(proto)
    except Exception as error:  # protobuf, onnx and onnx_ir each have their own
        raise ModelError(f"{files.model}: is not an ONNX model; export it again") from error
    if len(proto.graph.output) != 1:
        graph = read_model(files.model, output_name=output_name)
        return _Model(files, graph, *_facts(graph))
    return _Model(files, None, *_facts(model))


def _facts(model: ir.Model) -> tuple[bool, bool, tuple[int | None, ...] | None, int | None, bool]:
    """(quantized, probabilities, image, classes, pixels) of _Model."""
    graph = model.graph
    operators = {node.op_type for node in graph}
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]  # old files list both
    image = (image_sizes(inputs[0]) or ())[1:] if len(inputs) == 1 else ()
    outputs = free_or_fixed(graph.outputs[0]) or ()
    return (
        bool(operators & _QUANTIZERS),
        _ends_in_softmax(graph),
        image or None,
        outputs[1] if len(outputs) > 1 else None,
        TAKES_PIXELS in model.metadata_props or any(value.dtype == ir.DataType.UINT8 for value in inputs),
    )


def _ends_in_softmax(graph: ir.Graph) -> bool:
    """Whether the output are probabilities; the quantizers behind the softmax of an int8 model are passed."""
    producer = graph.outputs[0].producer()
    while producer is not None and producer.op_type in (*_QUANTIZERS, "Identity") and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Softmax"


def _plans(model: _Model, engines: Sequence[str], optimize: bool | None) -> list[_Plan]:
    chosen: list[str] = []
    for engine in engines:
        chosen += _fitting(model) if engine == ALL else [engine]
    plans = []
    for engine in dict.fromkeys(chosen):
        modes = _modes(engine, optimize)
        plans += [_plan(model, engine, mode, refusals=len(engines) > 1 or ALL in engines) for mode in modes]
    if not plans:
        raise ConfigError("no engine was named")
    return plans


def _modes(engine: str, optimize: bool | None) -> tuple[bool | None, ...]:
    if engine in OWN_ENGINES:
        return (None,)
    return _DEFAULT_MODES.get(engine, (False,)) if optimize is None else (optimize,)


def _fitting(model: _Model) -> list[str]:
    paddle = model.files.source_format != "onnx"
    own = ["simulated", "integer"] if model.quantized else []
    return own + [engine for engine in available_engines() if paddle or not engine.startswith("paddle")]


def _plan(model: _Model, engine: str, optimise: bool | None, *, refusals: bool = False) -> _Plan:
    """refusals: an engine that does not take the model becomes a row with its error, beside those that do."""
    try:
        return _Plan(engine, optimise, model.session(engine, bool(optimise)))
    except EngineError as error:
        if not refusals or engine not in (*available_engines(), *OWN_ENGINES):
            raise
        return _Plan(engine, optimise, None, str(error))


def _predict(model: _Model, plan: _Plan) -> Predict:
    session, error, which = plan.session, plan.error, model.output

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if session is None:
            raise EngineError(error)
        if len(session.input_names) != 1:
            raise ModelError(f"the model has the inputs {', '.join(session.input_names)}; an image classifier has one")
        outputs = session.run({session.input_names[0]: images})
        return np.asarray(outputs[which if len(outputs) > 1 else 0])

    return predict


def _row(model: _Model, plan: _Plan, row: ComparisonRow, shape: tuple[int, ...]) -> ResultRow:
    stage = "int8" if model.quantized else FLOAT
    common: dict[str, Any] = {"file": model.files.model.name, "file_bytes": model.files.size()}
    found = row.accuracy
    if found is None:
        return ResultRow(stage, plan.engine, plan.optimise, error=row.error, **common)
    return ResultRow(
        stage, plan.engine, plan.optimise,
        top1=_known(found.top1), top1_stderr=_known(found.top1_stderr), top5=_known(found.top5),
        agreement=_known(found.agreement), same_as_simulated=_known(row.same_as_simulated),
        mean_kl=_known(found.mean_kl), images=found.count,
        latency_ms=None if plan.optimise is None else _latency(plan.session, shape), **common,
    )  # fmt: skip


def _latency(session: Session | None, shape: tuple[int, ...]) -> float | None:
    """Median milliseconds of one image (C, H, W) at batch 1; None for an interpreter that is no one's deployment."""
    if session is None or session.engine == "paddle_lite":
        return None
    image = np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)
    return bound_latency(session, {session.input_names[0]: image})[0]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
