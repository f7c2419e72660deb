"""The stages between the reader and the writers: float, calibrated, trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.auto_compression.loaders import TrainingData
from fullquant.auto_compression.validation import Validation
from fullquant.calibration.calibrator import raise_to_bias_floors
from fullquant.calibration.full_range import fill_weights
from fullquant.calibration.sums import agreeing_sums, settle_sums
from fullquant.config import Config, QuantAware
from fullquant.data.progress import ProgressBar
from fullquant.distributed import ALONE, World
from fullquant.errors import ConfigError, TrainingError
from fullquant.graph.copying import copied
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.simulator import Simulator
from fullquant.training.distillation import DistillationTerm, default_node
from fullquant.training.optimizers import build_optimizer
from fullquant.training.qat import QatResult, QatSettings, QatTrainer, Score, weight_parameters
from fullquant.training.schedules import build_schedule
from fullquant.training.teacher_cache import TeacherCache

log = logging.getLogger("fullquant")
FloatArray = npt.NDArray[np.float32]


@dataclass
class QuantizedModel:
    """A placed graph with weights and scales: what the writers get, and its simulation."""

    model: ir.Model
    placement: Placement
    qparams: Mapping[str, QParams]
    student: GraphModule


def placement_options(config: Config) -> PlacementOptions:
    """The part of the configuration that decides what becomes int8."""
    settings = config.quantization
    types = settings.op_types
    return PlacementOptions(
        full=types is None,
        op_types=types or (),
        skip_patterns=settings.not_quant_pattern,
        reduce_range=settings.reduce_range,
        per_channel=settings.weight_granularity == "per_channel",
        scale_grid=settings.scale_grid,
    )


def finished(model: ir.Model, student: GraphModule) -> QuantizedModel:
    """Learned weights and scales as the writers want them; the student is set to exactly what is written.

    The scale of a sum that integer kernels would round otherwise is raised, and a weight scale below the floor that
    keeps its bias inside int32; weight scales that the runtime would lower are lowered.
    """
    placement = student.placement
    assert placement is not None
    final = copied(model)
    student.store_weights(final)
    fill_weights(student)
    settled = agreeing_sums(final, placement, student.current_qparams())
    qparams = raise_to_bias_floors(final, placement, settled)
    student.set_qparams(qparams)
    return QuantizedModel(final, placement, student.current_qparams(), student)


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a run that is known before its first step."""

    steps: int
    steps_per_epoch: int | None
    rate_factor: float
    checkpoint: Path | None
    digest: str
    progress: bool = True
    world: World = ALONE


def plan_training(
    config: Config, data: TrainingData, batch_size: int, checkpoint: Path, digest: str, world: World = ALONE
) -> TrainingPlan:
    """Length and learning-rate factor of the run. ConfigError where the length cannot be known.

    An epoch is as long as the shortest of the processes makes it.
    """
    per_epoch, train = data.steps_per_epoch(), config.train
    if not world.alone:
        known = [steps for steps in world.gather(per_epoch) if steps is not None]
        per_epoch = min(known) if len(known) == world.size else None
    if per_epoch is None:
        if train.train_iter is None:
            raise ConfigError("the train_dataloader has no length: give TrainConfig.train_iter, the number of steps")
        steps = train.train_iter
    else:
        steps = train.total_iterations(per_epoch)
    factor = train.rate_factor(batch_size, world.size)
    return TrainingPlan(steps, per_epoch, factor, checkpoint, digest, world=world)


def train(
    model: ir.Model, teacher: GraphModule, student: GraphModule, data: TrainingData, validation: Validation,
    config: Config, plan: TrainingPlan,
) -> tuple[QatResult, TrainingError | None]:  # fmt: skip
    """Quantization-aware training; afterwards the student holds the best state, the start included.

    An error that stops the training comes back beside the result, because the best state so far is still good.
    """
    settings = config.train
    aware = config.quantization
    assert isinstance(aware, QuantAware)
    _clip_mode(student, aware)
    schedule = build_schedule(settings.learning_rate, total_steps=plan.steps, factor=plan.rate_factor)
    weights, vectors = weight_parameters(student)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = build_optimizer(settings.optimizer, groups, schedule.lr_at(0))
    other, terms = _teacher_and_terms(model, teacher, config)
    bar = _TrainingBar(plan.steps, student, validation.name, plan.progress)

    trainer = QatTrainer(
        other, student, terms, data.batches, optimizer,
        lambda module: validation.score(Simulator(module)),
        QatSettings(
            steps=plan.steps, eval_every=settings.eval_iter, log_every=settings.logging_iter,
            learning_rate=schedule.lr_at, target=settings.target_metric, checkpoint_every=settings.checkpoint_iter,
            scale_rate=aware.scale_learning_rate,
            learn_scales=aware.learn_step_size or aware.use_pact, clip_decay=_PACT_DECAY if aware.use_pact else 0.0,
        ),
        checkpoint=plan.checkpoint, digest=plan.digest, progress=bar, resume=settings.resume,
        world=plan.world, cache=_teacher_cache(config, plan),
        settle=lambda module: settle_sums(module, model) + fill_weights(module),
    )  # fmt: skip
    with bar:
        try:
            return trainer.run(), None
        except TrainingError as error:
            return trainer.result, error


def _teacher_cache(config: Config, plan: TrainingPlan) -> TeacherCache | None:
    """In the save_dir, where the checkpoint is; each process has a share of its own."""
    gigabytes = config.distillation.teacher_cache_gb
    if gigabytes is None or plan.checkpoint is None:
        return None
    folder = plan.checkpoint.parent / f".teacher_cache_{plan.world.rank}"
    return TeacherCache(folder, gigabytes * 1e9 / plan.world.size)


# PACT's L2 regulariser on the clipping bound; Choi et al. use the weights' decay, for ImageNet 1e-4.
_PACT_DECAY = 1e-4


def _clip_mode(student: GraphModule, settings: QuantAware) -> None:
    """use_pact without learned steps: the bound learns from clipped values alone."""
    clip_only = settings.use_pact and not settings.learn_step_size
    for quantizer in student.fake_quantizers():
        quantizer.clip_only = clip_only and quantizer.spec.axis is None


def _teacher_and_terms(
    model: ir.Model, teacher: GraphModule, config: Config
) -> tuple[GraphModule, list[DistillationTerm]]:
    """The teacher (the float model, or another one) and the pairs of nodes to compare."""
    settings = config.distillation
    ours = theirs = default_node(model)
    if settings.teacher_model_dir is not None:
        source = read_model(
            settings.teacher_model_dir,
            settings.teacher_model_filename,
            settings.teacher_params_filename,
            output_name=settings.teacher_output_name,
        )
        other = prepare(source)
        theirs = default_node(other)
        teacher = GraphModule(other).to(next(teacher.parameters()).device)
    student_names = {str(v.name) for node in model.graph for v in node.outputs}
    terms = settings.terms(student_names, ours, theirs)
    return teacher, [DistillationTerm(t.loss, t.student, t.teacher, t.alpha) for t in terms]


class _TrainingBar:
    """The progress bar of the trainer: loss, images/s, time left."""

    def __init__(self, steps: int, student: GraphModule, metric: str, enabled: bool) -> None:
        self._bar = ProgressBar("train", steps, unit="steps", enabled=enabled)
        self._metric = metric
        self._best = ""

    def __enter__(self) -> _TrainingBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def resumed(self, step: int) -> None:
        self._bar.advance(step)
        log.info("resumed at step %d", step)

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        self._bar.advance(1, note=f"loss {loss:.4g}, {images_per_second:.0f} images/s{self._best}")

    def evaluated(self, step: int, score: Score, best: bool) -> None:
        log.info("step %d: %s%s", step, score.numbers(self._metric), " (best so far)" if best else "")
        if best:
            self._best = f", best {self._metric} {score.metric:.4f}"
