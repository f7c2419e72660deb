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
from fullquant.auto_compression.calibrate import calibrated
from fullquant.auto_compression.exporting import (
    ExportedFiles,
    check_save_dir,
    export,
    findings,
    make_save_dir,
    paddle_names,
)
from fullquant.auto_compression.loaders import (
    DealtBatches,
    FirstImages,
    TrainingData,
    check_images,
    check_labels,
    check_pixels,
    free_or_fixed,
    pool_skipped,
    share_of,
)
from fullquant.auto_compression.stages import (
    QuantizedModel,
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
from fullquant.distributed import ALONE, World, joined
from fullquant.errors import ConfigError, TrainingError
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.readers import find_model, read_model
from fullquant.readers.pixels import TAKES_PIXELS
from fullquant.readers.quantized import refuse_quantized
from fullquant.report.html import write_html
from fullquant.report.machine import machine
from fullquant.report.record import Record, ResultRow, digest, file_entry, write_record
from fullquant.runtime.devices import prepare_runtime
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.simulator import Simulator
from fullquant.training.qat import QatResult

log = logging.getLogger("fullquant")
FloatArray = npt.NDArray[np.float32]

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

    In several processes (torchrun, paddle.distributed.launch) train_dataloader gives each its own batches, and
    eval_dataloader gives all the same, which are then dealt out.
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
        self.files = find_model(Path(model_dir), model_filename, params_filename)
        self.model_dir, self.save_dir = Path(model_dir), Path(save_dir)
        check_save_dir(self.save_dir, self.model_dir)
        self.target = self.config.target(deploy_hardware)
        self.progress = progress
        self.device = device
        self._world = ALONE
        self._names = paddle_names(str(self.files.model), None if self.files.params is None else str(self.files.params))
        output = self.config.global_section.output_name
        self._source = read_model(model_dir, model_filename, params_filename, self._shapes(input_shapes), output)
        refuse_quantized(self._source, self.files.model)
        self.model = prepare(self._source)
        self.input_name = str(self.model.graph.inputs[0].name)
        self._check_names()
        self._find_teacher()
        self._image = (free_or_fixed(self.model.graph.inputs[0]) or ())[1:] or None
        self.data = TrainingData(train_dataloader, self.input_name, self._image)
        self._eval_callback, self._eval_source = eval_callback, eval_dataloader
        self._check_loaders()
        self._remarks = reporting.source_notes(self.model) + self._twice()
        for remark in self._remarks:
            log.warning("%s", remark)

    # ---- set-up ------------------------------------------------------------------------------------------------

    def _shapes(self, given: Mapping[str, Sequence[int]] | Sequence[int] | None) -> Mapping[str, Sequence[int]] | None:
        shape = given if given is not None else self.config.global_section.input_shape
        if shape is None or isinstance(shape, Mapping):
            return shape
        name = self.config.global_section.input_name
        if name is None:
            output, params = self.config.global_section.output_name, _name(self.files.params)
            source = read_model(self.model_dir, self.files.model.name, params, output_name=output)
            name = str(source.graph.inputs[0].name)
        return {name: tuple(shape)}

    def _check_names(self) -> None:
        section, graph = self.config.global_section, self._source.graph
        for key, wanted, found in (
            ("input", section.input_name, self.input_name),
            ("output", section.output_name, str(graph.outputs[0].name)),
        ):
            if wanted is not None and wanted != found:
                raise ConfigError(f"Global.{key}_name is {wanted!r}; the {key} of {self.files.model} is {found!r}")

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
                if TAKES_PIXELS in self.model.metadata_props:
                    check_pixels(loader, self.files.model)
        if isinstance(self._eval_source, ImageLoader):
            outputs = free_or_fixed(self.model.graph.outputs[0]) or ()
            check_labels(self._eval_source, outputs[1] if len(outputs) > 1 else None, self.files.model)

    def _twice(self) -> list[str]:
        made = [
            loader.preprocess for loader in (self.data.source, self._eval_source) if isinstance(loader, ImageLoader)
        ]
        normalised = any(any(one.mean) or any(part != 1 for part in one.std) for one in made)
        if not normalised or not reporting.own_normalisation(self._source):
            return []
        return [reporting.normalised_twice(self._source, self.files.model)]

    @property
    def _probabilities(self) -> bool:
        producer = self.model.graph.outputs[0].producer()
        return producer is not None and producer.op_type == "Softmax"

    def _batch_size(self) -> int:
        source = self.data.source
        return source.batch_size if isinstance(source, ImageLoader) else self.config.global_section.batch_size

    def _validation(self, teacher: GraphModule, calibration: Sequence[FloatArray]) -> Validation:
        common: dict[str, Any] = {"probabilities": self._probabilities, "world": self._world}
        if self._eval_callback is not None:
            return CallbackValidation(self._eval_callback, self._world)
        if self._eval_source is not None:
            own = self._evaluation(self._world)
            if self._world.on_first(lambda: labelled(own)):
                return LabelledValidation(own, Simulator(teacher), progress=self._bars, **common)
        log.warning(
            "no eval_dataloader with labels and no eval_callback: agreement with the float model chooses the best model"
        )
        return AgreementValidation(calibration, Simulator(teacher), **common)

    def _evaluation(self, world: World) -> Any:
        """The (images, labels) of eval_dataloader: this process's share of them, or all for a world of one."""
        loader = self._eval_source
        if isinstance(loader, ImageLoader):
            return share_of(loader, world)
        return DealtBatches(as_feeds(loader, self.input_name, self._image), world)

    @property
    def _bars(self) -> bool:
        return self.progress and self._world.first

    # ---- the run -----------------------------------------------------------------------------------------------

    def compress(self) -> CompressionResult:
        """Calibrates, trains (with QuantAware), writes, and verifies what was written.

        TrainingError after a non-finite loss: raised when the best model so far has been written. ExportError where
        nothing can be written to save_dir, before anything is done.
        """
        with joined(self.device) as (world, device):
            self._world = world
            return self._compress(world, device)

    def _compress(self, world: World, own_device: str | None) -> CompressionResult:
        world.on_first(lambda: make_save_dir(self.save_dir))
        self._check_dealt()
        clock = _Clock()
        device = prepare_runtime(own_device, seed=self.config.global_section.seed)
        world.keep_threads()
        placement = place(self.model, self.target, placement_options(self.config))
        teacher = GraphModule(self.model).to(device).eval()
        observer = self.config.quantization.observer
        calibration = self.data.calibration(observer.images, world)
        with clock.stage("evaluate float"):
            validation = self._validation(teacher, calibration)
            self._check_origin(validation, teacher)
        with clock.stage("calibrate"):
            student = calibrated(
                self.model, teacher, placement, calibration, observer,
                correct=self._corrects(), probabilities=self._probabilities, progress=self._bars, world=world,
            )  # fmt: skip
        ptq = finished(self.model, copy.deepcopy(student))
        result, failure = None, None
        if self.config.strategy == "qat":
            student.load_state_dict(ptq.student.state_dict())
            world.share_state(student.state_dict())
            with clock.stage("train"):
                result, failure = self._train(teacher, student, validation)
        kept, reason = reporting.kept_stage(result, validation)
        final = finished(self.model, student) if kept == "QAT" else ptq
        for loader in self._image_loaders():
            pool_skipped(loader, world)

        def write() -> CompressionResult:
            files = export(final, self.save_dir, self._names, onnx_format=self._onnx_format)
            log.info("written: %s", ", ".join(str(p) for p in files.paths()))
            faults = findings(files)
            for fault in faults:
                log.warning("%s", fault)
            rows: list[ResultRow] = []
            if self.config.global_section.verify_images:
                with clock.stage("verify"):
                    images = self._verification_loader(validation, calibration)
                    rows = self._verify(teacher, ptq, final, files, kept, images, calibration[0].shape[1:])
            record = self._report(final, rows, files, faults, result, kept, reason, clock.seconds)
            return CompressionResult(self.save_dir, files, record)

        written = world.on_first(write)
        if failure is not None:
            raise failure
        return written

    def _image_loaders(self) -> list[ImageLoader]:
        return [loader for loader in (self.data.source, self._eval_source) if isinstance(loader, ImageLoader)]

    def _check_dealt(self) -> None:
        source = self.data.source
        if isinstance(source, ImageLoader) and self.config.strategy == "qat":
            dealt = source.sampling.rank, source.sampling.world
            if dealt != (self._world.rank, self._world.size):
                raise ConfigError(
                    f"the train_dataloader deals its images out to {dealt[1]} process(es), and there are "
                    f"{self._world.size}: give ImageLoader rank and world"
                )

    @property
    def _onnx_format(self) -> bool:
        return self.config.quantization.onnx_format

    def _corrects(self) -> bool:
        settings = self.config.quantization
        return not isinstance(settings, QuantPost) or settings.corrects

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
        checkpoint = self.save_dir / ".checkpoint.pt"
        plan = plan_training(self.config, self.data, batch, checkpoint, self._digest(), self._world)
        self._tell_rate(batch * self._world.size, plan.rate_factor)
        plan = replace(plan, progress=self._bars)
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
        """batch: the images of one step, over all processes."""
        base = self.config.train.base_batch_size
        if self._world.size > 1:
            log.info("%d processes, %d images a step", self._world.size, batch)
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
        entries = [file_entry(path).sha256 for path in self.files.paths()]
        settings = reporting.settings_of(self.config)
        del settings["global_section"]["verify_images"]  # what is done with the files afterwards
        settings["train"] = {
            k: v for k, v in settings["train"].items() if k not in ("resume", "checkpoint_iter", "logging_iter")
        }
        return digest({
            "files": entries, "config": settings, "target": self.target, "processes": self._world.size
        })  # fmt: skip

    # ---- results -----------------------------------------------------------------------------------------------

    def _verify(
        self, teacher: GraphModule, ptq: QuantizedModel, final: QuantizedModel, files: ExportedFiles, kept: str,
        loader: Any, shape: tuple[int, ...],
    ) -> list[ResultRow]:  # fmt: skip
        common: dict[str, Any] = {"shape": shape, "probabilities": self._probabilities, "progress": self.progress}
        rows: list[ResultRow] = []
        if kept == "QAT":
            with tempfile.TemporaryDirectory(prefix="fullquant-ptq-") as folder:
                files_ptq = export(ptq, Path(folder), self._names, onnx_format=self._onnx_format)
                rows += verify(teacher, ptq, files_ptq, loader, stage="PTQ", with_float=True, **common)
        rows += verify(teacher, final, files, loader, stage=kept, with_float=not rows, **common)
        latency = float_latency(self.model, shape)
        size = self.files.size()
        return [replace(r, latency_ms=latency, file_bytes=size) if r.stage == "float" else r for r in rows]

    def _verification_loader(self, validation: Validation, calibration: Sequence[FloatArray]) -> Any:
        """Labelled images where there are any, at most Global.verify_images; process 0 alone verifies."""
        count = self.config.global_section.verify_images
        if not isinstance(validation, LabelledValidation):
            return list(FirstImages([(images, np.full(len(images), -1, np.int64)) for images in calibration], count))
        loader = self._evaluation(ALONE)
        if isinstance(loader, ImageLoader):
            return loader.over(loader.images.spread(count)) if len(loader.images) > count else loader
        return FirstImages(loader, count)

    def _report(
        self, final: QuantizedModel, rows: Sequence[ResultRow], files: ExportedFiles, faults: Sequence[str],
        result: QatResult | None, kept: str, reason: str, seconds: Mapping[str, float],
    ) -> Record:  # fmt: skip
        skipped = [loader.skipped for loader in self._image_loaders()]
        measured = reporting.notes(rows, machine().get("vnni")) if rows else [reporting.not_run(self.save_dir)]
        remarks = (*self._remarks, *measured, *faults)
        found = reporting.record(
            model_dir=self.model_dir, model_format=self.files.source_format, inputs=self.files.paths(),
            config=self.config, quantized=final, rows=rows, outputs=files.paths(), result=result, kept=kept,
            kept_reason=reason, seconds=seconds, skipped_images=sum(skipped), notes=remarks,
        )  # fmt: skip
        write_record(found, self.save_dir / "report.json")
        write_html(found, self.save_dir / "report.html")
        return found


def _name(path: Path | None) -> str | None:
    return None if path is None or path.is_dir() else path.name
