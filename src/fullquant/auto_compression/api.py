"""AutoCompression: PaddleSlim's interface, from an exported model and images to integer files."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullquant.auto_compression import reporting
from fullquant.auto_compression.exporting import ExportedFiles, check_save_dir, export, make_save_dir, paddle_names
from fullquant.auto_compression.loaders import TrainingData, check_images, check_labels, free_or_fixed
from fullquant.auto_compression.stages import (
    QuantizedModel,
    calibrated,
    finished,
    placement_options,
    plan_training,
    train,
)
from fullquant.auto_compression.validation import (
    AgreementValidation,
    CallbackValidation,
    LabelledValidation,
    Validation,
    labelled,
)
from fullquant.auto_compression.verification import float_latency, verify
from fullquant.config import Config, QuantPost, load_config
from fullquant.data import ImageLoader, as_feeds
from fullquant.errors import ConfigError, ModelError, TrainingError
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.readers import find_model, read_model
from fullquant.report.html import write_html
from fullquant.report.record import Record, ResultRow, digest, file_entry, write_record
from fullquant.runtime.devices import prepare_runtime
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.simulator import Simulator
from fullquant.training.qat import QatResult, Score

log = logging.getLogger("fullquant")
FloatArray = npt.NDArray[np.float32]

# Exported files are checked on at most this many validation images; accuracy is measured on all in training.
VERIFY_IMAGES = 2000
# PaddleSlim refuses to train where the measured accuracy of the float model is farther than this from origin_metric.
_ORIGIN_TOLERANCE = 0.05


@dataclass(frozen=True)
class CompressionResult:
    """What compress() did: files written, the report, and which stage was kept ("PTQ" or "QAT")."""

    save_dir: Path
    files: ExportedFiles
    record: Record

    @property
    def kept(self) -> str:
        """Which of the two the files hold: "PTQ" or "QAT"."""
        return self.record.kept


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


class AutoCompression:
    """Turns an exported float classifier into a fully integer one.

    model_dir: folder (or file) of the float model; model_filename and params_filename are found where not given.
    train_dataloader: images to train and calibrate on: an iterable (or a function that returns one) of
        {input name: array}, lists of such, or (image, label) pairs, with NumPy, torch or Paddle arrays. Labels are
        not used: the float model is the teacher.
    save_dir: gets the Paddle pair, model_int8.onnx, report.json and report.html.
    config: path of a YAML file or a mapping of sections, see docs/configuration.md.
    input_shapes: {input name: shape} or a shape, for models with a dynamic height and width.
    eval_callback: function (exe, program, feed_names, fetch_list) -> number, larger is better.
    eval_dataloader: validation batches; with labels they are evaluated directly, and eval_callback is not needed.
    deploy_hardware: the target (see QuantAware.target) or a hardware name of PaddleSlim's ("gpu", "cpu", "SD710", ...).
    target_speedup: PaddleSlim uses it to choose a pruning ratio; fullquant does not prune, so only None is accepted.
    device: "cpu", "cuda", "cuda:1"; None takes the GPU where there is one.

    Raises ConfigError, ModelError and DataError (all FullquantError) for wrong settings, models and data.
    """

    def __init__(
        self,
        model_dir: str | Path,
        train_dataloader: Any,
        model_filename: str | None = None,
        params_filename: str | None = None,
        save_dir: str | Path = "./output",
        config: str | Path | Mapping[str, Any] | Config | None = None,
        input_shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
        target_speedup: float | None = None,
        eval_callback: Callable[..., Any] | None = None,
        eval_dataloader: Any = None,
        deploy_hardware: str | None = None,
        *,
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        if config is None:
            raise ConfigError("config is not given: a YAML file or a mapping with a section QuantAware or QuantPost")
        if target_speedup is not None:
            raise ConfigError(
                "target_speedup chooses a pruning ratio in PaddleSlim; fullquant does not prune: leave it out"
            )
        self.config = config if isinstance(config, Config) else load_config(config)
        if not self.config.quantization.onnx_format:
            raise ConfigError(
                "onnx_format: false (Paddle Lite before 2.13) is not written yet; leave it out or set true"
            )
        self.files = find_model(Path(model_dir), model_filename, params_filename)
        self.model_dir, self.save_dir = Path(model_dir), Path(save_dir)
        check_save_dir(self.save_dir, self.model_dir)
        self.target = self.config.target(deploy_hardware)
        self.progress = progress
        self.device = device
        self._names = paddle_names(str(self.files.model), None if self.files.params is None else str(self.files.params))
        self._source = read_model(model_dir, model_filename, params_filename, self._shapes(input_shapes))
        self._refuse_quantized()
        self.model = prepare(self._source)
        self.input_name = str(self.model.graph.inputs[0].name)
        self._check_input_name()
        self._find_teacher()
        self._image = (free_or_fixed(self.model.graph.inputs[0]) or ())[1:] or None
        self.data = TrainingData(train_dataloader, self.input_name, self._image)
        self._eval_callback, self._eval_source = eval_callback, eval_dataloader
        self._check_loaders()

    # ---- set-up ------------------------------------------------------------------------------------------------

    def _shapes(self, given: Mapping[str, Sequence[int]] | Sequence[int] | None) -> Mapping[str, Sequence[int]] | None:
        shape = given if given is not None else self.config.global_section.input_shape
        if shape is None or isinstance(shape, Mapping):
            return shape
        name = self.config.global_section.input_name
        if name is None:
            name = str(read_model(self.model_dir, self.files.model.name, _name(self.files.params)).graph.inputs[0].name)
        return {name: tuple(shape)}

    def _refuse_quantized(self) -> None:
        for node in self._source.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                raise ModelError(
                    f"{self.files.model} is quantized already (it holds {node.op_type}); give the float model"
                )

    def _check_input_name(self) -> None:
        wanted = self.config.global_section.input_name
        if wanted is not None and wanted != self.input_name:
            raise ConfigError(
                f"Global.input_name is {wanted!r}; the input of {self.files.model} is {self.input_name!r}"
            )

    def _find_teacher(self) -> None:
        """Another teacher is read when training begins; a wrong name is said now."""
        settings = self.config.distillation
        if self.config.strategy == "qat" and settings.teacher_model_dir is not None:
            find_model(
                Path(settings.teacher_model_dir), settings.teacher_model_filename, settings.teacher_params_filename
            )

    def _check_loaders(self) -> None:
        for loader in (self.data.source, self._eval_source):
            if isinstance(loader, ImageLoader):
                check_images(loader, self._image, self.files.model)
        if isinstance(self._eval_source, ImageLoader):
            outputs = free_or_fixed(self.model.graph.outputs[0]) or ()
            check_labels(self._eval_source, outputs[1] if len(outputs) > 1 else None, self.files.model)

    @property
    def _probabilities(self) -> bool:
        producer = self.model.graph.outputs[0].producer()
        return producer is not None and producer.op_type == "Softmax"

    def _batch_size(self) -> int:
        source = self.data.source
        return source.batch_size if isinstance(source, ImageLoader) else self.config.global_section.batch_size

    def _validation(self, teacher: GraphModule, calibration: Sequence[FloatArray]) -> Validation:
        loader = self._labelled_loader()
        if loader is not None:
            return LabelledValidation(
                loader, Simulator(teacher), probabilities=self._probabilities, progress=self.progress
            )
        if self._eval_callback is not None:
            return CallbackValidation(self._eval_callback)
        log.warning(
            "no eval_dataloader with labels and no eval_callback: agreement with the float model chooses the best model"
        )
        return AgreementValidation(calibration, Simulator(teacher), probabilities=self._probabilities)

    def _labelled_loader(self) -> Any:
        """(images, labels) batches, or None. A callback of the user's comes before labels."""
        if self._eval_source is None or self._eval_callback is not None:
            return None
        loader = self._eval_source
        if not isinstance(loader, ImageLoader):
            loader = _Batches(as_feeds(loader, self.input_name, self._image))
        return loader if labelled(loader) else None

    # ---- the run -----------------------------------------------------------------------------------------------

    def compress(self) -> CompressionResult:
        """Calibrates, trains (with QuantAware), writes, and verifies what was written.

        TrainingError after a non-finite loss: raised when the best model so far has been written. ExportError where
        nothing can be written to save_dir, before anything is done.
        """
        make_save_dir(self.save_dir)
        clock = _Clock()
        device = prepare_runtime(self.device, seed=self.config.global_section.seed)
        placement = place(self.model, self.target, placement_options(self.config))
        teacher = GraphModule(self.model).to(device).eval()
        observer = self.config.quantization.observer
        calibration = self.data.calibration(observer.images)
        with clock.stage("evaluate float"):
            validation = self._validation(teacher, calibration)
            self._check_origin(validation, teacher)
        with clock.stage("calibrate"):
            student = calibrated(
                self.model, teacher, placement, calibration, observer,
                correct=self._corrects(), probabilities=self._probabilities, progress=self.progress,
            )  # fmt: skip
        ptq = finished(self.model, copy.deepcopy(student))
        result, failure = None, None
        if self.config.strategy == "qat":
            student.load_state_dict(ptq.student.state_dict())
            with clock.stage("train"):
                result, failure = self._train(teacher, student, validation)
        kept, reason = _kept(result, validation)
        final = finished(self.model, student) if kept == "QAT" else ptq
        files = export(final, self.save_dir, self._names)
        log.info("written: %s", ", ".join(str(p) for p in files.paths()))
        with clock.stage("verify"):
            rows = self._verify(teacher, ptq, final, files, kept, calibration)
        record = self._report(final, rows, files, result, kept, reason, clock.seconds)
        if failure is not None:
            raise failure
        return CompressionResult(self.save_dir, files, record)

    def _corrects(self) -> bool:
        settings = self.config.quantization
        return not isinstance(settings, QuantPost) or settings.bias_correction

    def _check_origin(self, validation: Validation, teacher: GraphModule) -> None:
        measured = (
            validation.float_accuracy.top1
            if isinstance(validation, LabelledValidation)
            else validation.metric(Simulator(teacher))
        )
        log.info("float model: %s %.4f", validation.name, measured)
        origin = self.config.train.origin_metric
        if origin is not None and abs(origin - measured) > _ORIGIN_TOLERANCE:
            raise ConfigError(
                f"TrainConfig.origin_metric is {origin}, but the float model measures {measured:.4f}: the images, "
                "labels or preprocessing (mean, std, img_size, resize_size, channel_order) are not those of the model"
            )

    def _train(
        self, teacher: GraphModule, student: GraphModule, validation: Validation
    ) -> tuple[QatResult | None, TrainingError | None]:
        batch = self._batch_size()
        plan = plan_training(self.config, self.data, batch, self.save_dir / ".checkpoint.pt", self._digest())
        self._tell_rate(batch, plan.rate_factor)
        plan = replace(plan, progress=self.progress)
        validation.start = self._start_metric(validation, student)
        result, error = train(self.model, teacher, student, self.data, validation, self.config, plan)
        return (result if result.scores else None), error

    def _start_metric(self, validation: Validation, student: GraphModule) -> float | None:
        """The calibrated model's top-1, below which no trained state may end."""
        if not isinstance(validation, LabelledValidation):
            return None
        student.freeze()
        try:
            return validation.metric(Simulator(student))
        finally:
            student.freeze(False)

    def _tell_rate(self, batch: int, factor: float) -> None:
        base = self.config.train.base_batch_size
        if base is not None:
            log.info("learning rate times %.4g: batch size %d against base_batch_size %d", factor, batch, base)
        elif batch != 32:
            log.info(
                "learning rate used as written; if it is meant for batch size 32, the linear rule would multiply it by "
                "%.4g (set TrainConfig.base_batch_size to have that done)",
                batch / 32,
            )

    def _digest(self) -> str:
        """Identifies a run: a checkpoint of other settings or another model is not resumed."""
        entries = [file_entry(p).sha256 for p in (self.files.model, self.files.params) if p is not None and p.is_file()]
        settings = reporting.settings_of(self.config)
        settings["train"] = {
            k: v for k, v in settings["train"].items() if k not in ("resume", "checkpoint_iter", "logging_iter")
        }
        return digest({"files": entries, "config": settings, "target": self.target})

    # ---- results -----------------------------------------------------------------------------------------------

    def _verify(
        self, teacher: GraphModule, ptq: QuantizedModel, final: QuantizedModel, files: ExportedFiles, kept: str,
        calibration: Sequence[FloatArray],
    ) -> list[ResultRow]:  # fmt: skip
        loader = self._verification_loader(calibration)
        shape = tuple(int(n) for n in calibration[0].shape[1:])
        common: dict[str, Any] = {"shape": shape, "probabilities": self._probabilities, "progress": self.progress}
        rows: list[ResultRow] = []
        if kept == "QAT":
            with tempfile.TemporaryDirectory(prefix="fullquant-ptq-") as folder:
                rows += verify(
                    teacher, ptq, export(ptq, Path(folder), self._names), loader, stage="PTQ", with_float=True, **common
                )
        rows += verify(teacher, final, files, loader, stage=kept, with_float=not rows, **common)
        latency = float_latency(self.model, shape)
        size = sum(p.stat().st_size for p in self._inputs())
        return [replace(r, latency_ms=latency, file_bytes=size) if r.stage == "float" else r for r in rows]

    def _verification_loader(self, calibration: Sequence[FloatArray]) -> Any:
        loader = self._labelled_loader()
        if loader is None:
            return [(images, np.full(len(images), -1, np.int64)) for images in calibration]
        if isinstance(loader, ImageLoader) and len(loader.images) > VERIFY_IMAGES:
            return loader.over(loader.images.spread(VERIFY_IMAGES))
        return loader

    def _inputs(self) -> list[Path]:
        params = self.files.params
        if params is not None and params.is_dir():
            return sorted(p for p in params.iterdir() if p.is_file())
        return [p for p in (self.files.model, params) if p is not None]

    def _report(
        self, final: QuantizedModel, rows: Sequence[ResultRow], files: ExportedFiles, result: QatResult | None,
        kept: str, reason: str, seconds: Mapping[str, float],
    ) -> Record:  # fmt: skip
        skipped = [s.skipped for s in (self.data.source, self._eval_source) if isinstance(s, ImageLoader)]
        found = reporting.record(
            model_dir=self.model_dir, model_format=self.files.source_format, inputs=self._inputs(), config=self.config,
            quantized=final, rows=rows, outputs=files.paths(), result=result, kept=kept, kept_reason=reason,
            seconds=seconds, skipped_images=sum(skipped), notes=_notes(rows),
        )  # fmt: skip
        write_record(found, self.save_dir / "report.json")
        write_html(found, self.save_dir / "report.html")
        return found


@dataclass(frozen=True)
class _Batches:
    """(images, labels) of any data loader, as often as asked."""

    feeds: Any

    def __iter__(self) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        return iter(self.feeds.batches())


def _name(path: Path | None) -> str | None:
    return None if path is None or path.is_dir() else path.name


def _kept(result: QatResult | None, validation: Validation) -> tuple[str, str]:
    if result is None:
        return "PTQ", "calibration only"
    start, best = result.scores[0][1], result.best_score
    if result.best_step == 0 or best is None:
        return "PTQ", f"no training step was better than the calibrated start ({_numbers(start, validation)})"
    return (
        "QAT",
        f"{_numbers(best, validation)} at step {result.best_step}, after {_numbers(start, validation)} calibrated",
    )


def _numbers(score: Score, validation: Validation) -> str:
    agreement = "" if score.agreement is None else f", agreement {score.agreement:.4f}"
    return f"{validation.name} {score.metric:.4f}{agreement}"


def _notes(rows: Sequence[ResultRow]) -> list[str]:
    """Remarks on what the rows show: first of all, saturating int8 kernels."""
    by_engine = {(r.stage, r.optimised): r for r in rows if r.engine == "onnxruntime"}
    notes: list[str] = []
    for (stage, optimised), row in by_engine.items():
        plain = by_engine.get((stage, False))
        if not optimised or plain is None or row.same_as_simulated is None or plain.same_as_simulated is None:
            continue
        if plain.same_as_simulated - row.same_as_simulated > 0.005:
            notes.append(
                f"{stage}: ONNX Runtime with optimisations gives another class than the file means on "
                f"{100 * (plain.same_as_simulated - row.same_as_simulated):.1f}% of the images. On x86 processors "
                "without VNNI its int8 kernels add two products in 16 bits, which saturates; "
                "QuantAware.reduce_range: true avoids it."
            )
    return notes
