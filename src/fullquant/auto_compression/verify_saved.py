"""`fullquant verify`: the files of a folder, as they are, in every runtime, beside the simulation that they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullquant.auto_compression.differences import Explanation, explain
from fullquant.auto_compression.embedded import resolve_embedded
from fullquant.auto_compression.loaders import (
    check_images,
    check_labels,
    free_or_fixed,
    validation_loader,
    with_image,
)
from fullquant.auto_compression.saved import (
    find_saved,
    float_model,
    image_shape,
    images_of_record,
    read_at,
    recorded_output,
)
from fullquant.config import Config, load_config
from fullquant.data.progress import ProgressBar
from fullquant.errors import ConfigError, EngineError, FullquantError
from fullquant.evaluation.accuracy import AccuracyMeter, images_of
from fullquant.lint import lint
from fullquant.passes import prepare
from fullquant.placement.accumulators import overflows
from fullquant.readers import ModelFiles, find_model
from fullquant.readers.quantized import split_quantizers
from fullquant.report.machine import machine, package_versions
from fullquant.report.record import utc_now
from fullquant.runtime.departure import Simulation
from fullquant.runtime.integer import IntegerModel
from fullquant.runtime.sessions import Source, available_engines, open_session
from fullquant.runtime.simulator import Simulator

FloatArray = npt.NDArray[np.float32]
Predict = Callable[[FloatArray], FloatArray]

FLOAT, SIMULATED, INTEGER = "float", "simulated", "integer"
ENGINES = (INTEGER, "onnxruntime", "openvino", "paddle", "paddle_onednn", "paddle_lite")
# Engine -> with which settings of its optimisations, in the order of the table.
_ONNX_MODES: Mapping[str, tuple[bool, ...]] = {"onnxruntime": (False, True), "openvino": (True,)}
_PADDLE_MODES: Mapping[str, tuple[bool, ...]] = {
    "paddle": (False,), "paddle_onednn": (True,), "paddle_lite": (False, True),
}  # fmt: skip
MOST_IMAGES = 2000
_LOOKED_AT = 4  # images on which a runtime differs most, and on which its tensors are looked at


@dataclass(frozen=True)
class Tolerance:
    """What passes. Everything is measured against the simulation of the same file on the same images.

    drop: percentage points of top-1 that a runtime may lose; one image may always change.
    agreement: percent of the images that must keep their class in integer kernels.
    plain_agreement: the same where every operator is computed as the file says, and for the integer reference.
    """

    drop: float = 0.3
    agreement: float = 90.0
    plain_agreement: float = 99.0

    def __post_init__(self) -> None:
        if self.drop < 0 or not 0 <= self.agreement <= 100 or not 0 <= self.plain_agreement <= 100:
            raise ConfigError("a tolerance is in percent: 0 to 100, and a drop of 0 or more")


@dataclass(frozen=True)
class EngineCheck:
    """One line: the float model, a simulation, the integer reference, or a runtime.

    optimised: None where there is nothing to switch. Shares are 0..1, None where not measured.
    agreement, mean_kl, steps: against the simulation of the same file. steps: largest difference of an output in steps.
    explanation: of a runtime whose outputs differ. failures: what is beyond the tolerance. error: it gave no numbers.
    """

    engine: str
    optimised: bool | None
    file: str
    top1: float | None = None
    agreement: float | None = None
    mean_kl: float | None = None
    steps: float | None = None
    explanation: Explanation | None = None
    failures: tuple[str, ...] = ()
    error: str = ""

    @property
    def name(self) -> str:
        """The engine, with its optimisations where they can be switched."""
        return self.engine if self.optimised is None else f"{self.engine} {'optimised' if self.optimised else 'plain'}"


@dataclass(frozen=True)
class Verification:
    """checks: in the order of the table. findings: what is wrong in the files themselves, before anything is run."""

    checks: tuple[EngineCheck, ...]
    findings: tuple[str, ...]
    images: int
    labelled: int
    tolerance: Tolerance
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    created: str

    @property
    def passed(self) -> bool:
        """No finding, and no line beyond the tolerance or without numbers."""
        return not self.findings and not any(check.failures or check.error for check in self.checks)


@dataclass(frozen=True)
class _File:
    """An int8 file and what it means."""

    files: ModelFiles
    simulation: Simulation

    @property
    def step(self) -> float:
        """Of the output; NaN where the output is not placed."""
        output = self.simulation.module.output_name
        placed = output in self.simulation.graph.places
        return float(self.simulation.grid(output).scale) if placed else math.nan


@dataclass
class _Runner:
    """A line of the table during the pass over the images."""

    engine: str
    optimised: bool | None
    file: _File
    predict: Predict
    meter: AccuracyMeter
    runtime: bool = False
    error: str = ""
    distance: float = 0.0
    worst: list[tuple[float, FloatArray]] = field(default_factory=list)

    def run(
        self, images: FloatArray, labels: npt.NDArray[np.int64], expected: FloatArray, outputs: FloatArray | None
    ) -> None:
        """One batch; expected: the outputs of the simulation; outputs: what `predict` would give, if that is known."""
        if self.error:
            return
        try:
            outputs = np.asarray(self.predict(images) if outputs is None else outputs, np.float32)
            self.meter.update(outputs, labels, expected)
        except FullquantError as error:
            self.error = str(error)
            return
        distances = np.abs(outputs.reshape(len(images), -1) - expected.reshape(len(images), -1)).max(axis=1)
        self.distance = max(self.distance, float(distances.max(initial=0)))
        if self.runtime:
            self._remember(images, distances)

    def _remember(self, images: FloatArray, distances: FloatArray) -> None:
        known = [(float(d), image) for d, image in zip(distances, images, strict=True) if d > 0]
        ranked = sorted([*self.worst, *known], key=lambda pair: -pair[0])[:_LOOKED_AT]
        self.worst = [(distance, np.array(image)) for distance, image in ranked]


def verify_saved(
    save_dir: str | Path, config: str | Path | Config | None = None, *, reference: str | Path | None = None,
    engines: Sequence[str] | None = None, total_images: int | None = None, tolerance: Tolerance | None = None,
    locate: bool = True, progress: bool = True,
) -> Verification:  # fmt: skip
    """Runs the int8 files of a folder on the validation images, and explains what differs from the simulation.

    save_dir: what `quantize` wrote, or one int8 file; nothing but the files is used. config: whose Global section names
    the images; by default that of the report. reference: the float model, by default the one of the report.
    engines: "integer" and names of runtimes; by default all that are there. total_images: spread over the list; at most
    2000 by default. locate: look for the first tensor that differs.

    A runtime that refuses a file is a line with its error. Raises ConfigError, ModelError, DataError, and EngineError
    for an engine that is unknown or not installed.
    """
    saved, chosen = find_saved(save_dir), _chosen(engines)
    settings = images_of_record(saved) if config is None else config
    settings = settings if isinstance(settings, Config) else load_config(settings)
    section = resolve_embedded(Config(global_section=settings.global_section), progress=progress).global_section
    shape = image_shape(saved, section.img_size)
    section = with_image(section, shape, saved.models[0])
    files = [_read(path, shape) for path in saved.models]
    findings = tuple(dict.fromkeys(finding for file in files for finding in _findings(file)))
    source = float_model(saved, reference)
    reference_source = None if source is None else _float_source(source, shape, recorded_output(saved))
    runners = list(_runners(files, chosen, reference_source))
    with validation_loader(section, total_images) as loader:
        if total_images is None and len(loader.images) > MOST_IMAGES:
            loader = loader.over(loader.images.spread(MOST_IMAGES))
        first = files[0]
        check_images(loader, shape, first.files.model)
        output = free_or_fixed(first.simulation.graph.model.graph.outputs[0]) or ()
        check_labels(loader, output[1] if len(output) > 1 else None, first.files.model)
        images, labelled = _pass(files, runners, loader, progress)
    explained = _explained(runners, progress) if locate else {}
    limits = tolerance or Tolerance()
    checks = tuple(_check(runner, runners, explained.get(id(runner)), limits, labelled) for runner in runners)
    return Verification(checks, findings, images, labelled, limits, machine(), package_versions(), utc_now())


# ---- what is there -------------------------------------------------------------------------------------------------


def _chosen(engines: Sequence[str] | None) -> list[str]:
    installed = [engine for engine in ENGINES if engine == INTEGER or engine in available_engines()]
    if not engines or list(engines) == ["all"]:
        return installed
    for engine in engines:
        if engine not in ENGINES:
            raise ConfigError(f"unknown engine {engine!r}; it is one of {', '.join(ENGINES)}")
    return list(dict.fromkeys(engines))


def _read(path: Path, shape: Sequence[int]) -> _File:
    return _File(find_model(path), Simulation(split_quantizers(read_at(path, shape))))


def _findings(file: _File) -> Iterator[str]:
    """What is wrong in a file whatever the images: the rules of `fullquant.lint`, and sums beyond 32 bits."""
    graph, files = file.simulation.graph, file.files
    params = None if files.params is None else files.params.name
    for finding in lint(files.model.parent, files.model.name, params):
        yield f"{files.model.name}: {finding}"
    for overflow in overflows(graph.model, graph.placement, graph.qparams):
        yield f"{file.files.model.name}: {overflow}"


def _runners(files: Sequence[_File], engines: Sequence[str], source: Source | None) -> Iterator[_Runner]:
    first = files[0]
    if source is not None:
        yield _runner(FLOAT, None, first, _session(source, "onnxruntime", True))
    for file in files:
        yield _runner(SIMULATED, None, file, Simulator(file.simulation.module).predict)
    for engine in engines:
        if engine == INTEGER:
            yield _runner(INTEGER, None, first, _integer(first))
            continue
        found = [file for file in files if engine in (_ONNX_MODES if _is_onnx(file) else _PADDLE_MODES)]
        for file in found:
            for mode in (_ONNX_MODES if _is_onnx(file) else _PADDLE_MODES)[engine]:
                yield _opened(engine, mode, file)


def _runner(engine: str, optimised: bool | None, file: _File, predict: Predict, *, runtime: bool = False) -> _Runner:
    producer = file.simulation.graph.model.graph.outputs[0].producer()
    probabilities = producer is not None and producer.op_type == "Softmax"
    meter = AccuracyMeter(outputs_are_probabilities=probabilities, engine=engine)
    return _Runner(engine, optimised, file, predict, meter, runtime)


def _opened(engine: str, optimise: bool, file: _File) -> _Runner:
    try:
        predict = _session(file.files.model, engine, optimise)
    except EngineError as error:
        if engine not in available_engines():
            raise
        refused = _runner(engine, optimise, file, lambda images: images)
        refused.error = str(error)
        return refused
    return _runner(engine, optimise, file, predict, runtime=True)


def _session(source: Source, engine: str, optimise: bool) -> Predict:
    session = open_session(source, engine, optimize=optimise)
    return lambda images: np.asarray(session.run({session.input_names[0]: images})[0])


def _integer(file: _File) -> Predict:
    """Built when it is first asked for: where an accumulator overflows, that is the line's error."""
    graph = file.simulation.graph
    made: list[IntegerModel] = []

    def predict(images: FloatArray) -> FloatArray:
        if not made:
            made.append(IntegerModel(graph.model, graph.placement, graph.qparams))
        return made[0].predict(images)

    return predict


def _is_onnx(file: _File) -> bool:
    return file.files.source_format == "onnx"


def _float_source(path: Path, shape: Sequence[int], output: str | None) -> Source:
    """output: the one that was quantized, of several. An ONNX file with one output is opened as it is."""
    onnx = find_model(path).source_format == "onnx"
    return path if onnx and output is None else prepare(read_at(path, shape, output))


# ---- the images ----------------------------------------------------------------------------------------------------


def _pass(files: Sequence[_File], runners: Sequence[_Runner], loader: object, progress: bool) -> tuple[int, int]:
    """All lines on all images; (images, those with labels)."""
    simulators = {id(file): Simulator(file.simulation.module) for file in files}
    count = labelled = 0
    batches: Sequence[tuple[FloatArray, npt.NDArray[np.int64]]] = loader  # type: ignore[assignment]
    with ProgressBar(f"compare {len(runners)} engines", images_of(batches), enabled=progress) as bar:
        for images, labels in batches:
            expected = {key: simulator.predict(images) for key, simulator in simulators.items()}
            for runner in runners:
                # The second file's simulation is compared with the first's, everything else with its own file's.
                own = files[0] if runner.engine in (FLOAT, SIMULATED) else runner.file
                known = expected[id(runner.file)] if runner.engine == SIMULATED else None
                runner.run(images, labels, expected[id(own)], known)
            count += len(images)
            labelled += int(np.count_nonzero(labels >= 0))
            bar.advance(len(images))
    return count, labelled


def _explained(runners: Sequence[_Runner], progress: bool) -> dict[int, Explanation]:
    differing = [runner for runner in runners if runner.worst and not runner.error]
    found: dict[int, Explanation] = {}
    with ProgressBar("look for first differences", len(differing), unit="engines", enabled=progress) as bar:
        for runner in differing:
            images = np.stack([image for _, image in runner.worst])
            bar.advance(0, note=f"{runner.engine}")
            try:
                found[id(runner)] = explain(
                    runner.file.simulation, runner.file.files, runner.engine, bool(runner.optimised), images
                )
            except EngineError:  # the runtime runs the file, and refuses its copies with more outputs
                continue
            finally:
                bar.advance(1)
    return found


# ---- the verdict ---------------------------------------------------------------------------------------------------


def _check(
    runner: _Runner, runners: Sequence[_Runner], explanation: Explanation | None, tolerance: Tolerance, labelled: int
) -> EngineCheck:
    name = runner.file.files.model.name if runner.engine != FLOAT else ""
    accuracy, error = None, runner.error
    if not error:
        try:
            accuracy = runner.meter.result()
        except EngineError as problem:
            error = str(problem)
    if accuracy is None:
        return EngineCheck(runner.engine, runner.optimised, name, error=error)
    own = next(r for r in runners if r.engine == SIMULATED and r.file is runner.file)
    simulated = own.meter.result()
    check = EngineCheck(
        runner.engine, runner.optimised, name, _known(accuracy.top1), _known(accuracy.agreement),
        _known(accuracy.mean_kl), None if runner.engine == FLOAT else _known(runner.distance / runner.file.step),
        explanation,
    )  # fmt: skip
    failures = tuple(_failures(check, simulated.top1, tolerance, labelled))
    return EngineCheck(**{**vars(check), "failures": failures})


def _failures(check: EngineCheck, simulated: float, tolerance: Tolerance, labelled: int) -> Iterator[str]:
    if check.engine == FLOAT:
        return
    exact = check.engine in (SIMULATED, INTEGER) or check.optimised is False
    least = tolerance.plain_agreement if exact else tolerance.agreement
    if check.agreement is not None and 100 * check.agreement < least:
        yield f"{100 * check.agreement:.2f}% of the images keep the simulation's class, at least {least:g}% should"
    if check.top1 is not None and labelled:
        lost = simulated - check.top1
        if 100 * lost > tolerance.drop and lost * labelled > 1.5:
            yield f"top-1 is {100 * lost:.2f} points below the simulation's, at most {tolerance.drop:g} should be lost"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
