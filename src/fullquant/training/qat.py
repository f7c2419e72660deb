"""Quantization-aware training with distillation: the loop, its evaluations, and what is kept.

The student starts at the PTQ model and only a better validation score replaces what is kept, so training never
ends below its start. Weights follow the user's optimizer; the scales, learned as logarithms, follow Adam with a
rate of their own, because their size has nothing to do with the weights' (TQT, arXiv:1903.08066, section 4).
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fullquant.distributed import ALONE, World
from fullquant.errors import TrainingError
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.prefetch import to_device
from fullquant.training.checkpoint import load_checkpoint, save_checkpoint
from fullquant.training.distillation import DistillationTerm, total_loss
from fullquant.training.optimizers import fused
from fullquant.training.teacher_cache import TeacherCache


@dataclass(frozen=True)
class Score:
    """One validation. metric: the headline number, top-1 or the user's; what target_metric is compared with.

    rank: what decides which state is better, larger first, compared from the left; the metric alone by default.
    agreement, mean_kl: share of images with the float model's class, divergence from its outputs; where measured.
    """

    metric: float
    rank: tuple[float, ...] = ()
    agreement: float | None = None
    mean_kl: float | None = None

    def __post_init__(self) -> None:
        if not self.rank:
            object.__setattr__(self, "rank", (self.metric,))

    def numbers(self, metric: str) -> str:
        """The numbers in words, for logs; metric: what the headline number is called."""
        agreement = "" if self.agreement is None else f", agreement {self.agreement:.4f}"
        divergence = "" if self.mean_kl is None else f", KL {self.mean_kl:.5f}"
        return f"{metric} {self.metric:.4f}{agreement}{divergence}"


_LARGEST_SCALE_RATE, _SCALES_PER_WEIGHT_RATE = 1e-2, 100.0

Batches = Callable[[int, int], Iterator[npt.NDArray[np.float32]]]


class Progress(Protocol):
    """What the loop tells while it runs."""

    def resumed(self, step: int) -> None: ...

    def step(self, step: int, loss: float, images_per_second: float) -> None: ...

    def evaluated(self, step: int, score: Score, best: bool) -> None: ...


@dataclass(frozen=True)
class QatSettings:
    """steps: optimizer steps in all. eval_every: steps between validations. log_every: steps between loss reports.

    learning_rate: step -> rate of the weights; their optimizer clips gradients by itself, if asked to.
    scale_rate: largest rate of the log-scales; it follows the schedule of the weights. None: 100 times the largest rate
    of the weights, at most 1e-2. At 1e-2 a scale can change several times over in some hundred steps, which a bad start
    needs and a good one does not survive; who trains the weights gently wants the scales gentle as well.
    learn_scales: whether they are trained at all. clip_decay: L2 decay of the clipping bounds, PACT's regulariser.
    target: training stops when the metric of the best state reaches it. checkpoint_every: steps between checkpoints.
    """

    steps: int
    eval_every: int
    log_every: int
    learning_rate: Callable[[int], float]
    scale_rate: float | None = None
    target: float | None = None
    checkpoint_every: int = 500
    learn_scales: bool = True
    clip_decay: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.eval_every, self.log_every, self.checkpoint_every) < 1:
            raise ValueError("steps and intervals are at least 1")


@dataclass
class QatResult:
    """What a run did: the score of each validation, and the step of the one that was kept (0 is the PTQ start)."""

    scores: list[tuple[int, Score]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_score: Score | None = None
    steps_done: int = 0
    images_per_second: float = 0.0
    stopped_by: str = "the last step"


class QatTrainer:
    """Trains `student` in place; at the end it holds the best state.

    batches(epoch, start) yields images [N, C, H, W] of an epoch from batch `start` on.
    evaluate(student) gives the validation score, larger is better.
    settle(student) sets the scales that can be written, for a validation: what is judged and kept has them, training
    goes on with those that it learns.

    world: with several processes each trains on its own batches and the gradients are averaged, so that all take the
    same step; the loss is the mean over them, the score that of process 0, which alone writes the checkpoint. An epoch
    ends where the first of them has no batch left.
    """

    def __init__(
        self,
        teacher: GraphModule,
        student: GraphModule,
        terms: Sequence[DistillationTerm],
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        evaluate: Callable[[GraphModule], Score],
        settings: QatSettings,
        *,
        checkpoint: Path | None = None,
        digest: str = "",
        progress: Progress | None = None,
        resume: bool = False,
        world: World = ALONE,
        cache: TeacherCache | None = None,
        settle: Callable[[GraphModule], object] | None = None,
    ) -> None:
        self.cache, self.settle = cache, settle
        self.teacher, self.student, self.terms = teacher.eval(), student, list(terms)
        self.batches, self.optimizer, self.evaluate, self.settings = batches, optimizer, evaluate, settings
        self.checkpoint, self.digest, self.progress, self.resume = checkpoint, digest, progress, resume
        self.device = next(student.parameters()).device
        self.world = world
        _hold_input_scale(student)
        scales = scale_parameters(student) if settings.learn_scales else []
        self._peak_rate = max(
            settings.learning_rate(s) for s in range(0, settings.steps, max(1, settings.steps // 200))
        )
        self._scale_rate = scale_rate(settings.scale_rate, self._peak_rate)
        self.scale_optimizer = (
            torch.optim.Adam(scales, lr=self._scale_rate, betas=(0.9, 0.99), fused=fused(scales)) if scales else None
        )
        self.result = QatResult()
        self._best: dict[str, torch.Tensor] = {}
        self._student_nodes = sorted({t.student_node for t in self.terms})
        self._teacher_nodes = sorted({t.teacher_node for t in self.terms})
        compared = _Compared(student, self._student_nodes)
        self._compared: nn.Module = compared if world.alone else _parallel(compared)

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> QatResult:
        """Trains to the last step, the target, or an error; the best state is kept. TrainingError: non-finite loss."""
        epoch, position, step = self._resume()
        if step == 0 and not self.result.scores:
            self._validate(0)
        try:
            while step < self.settings.steps and not self._reached_target():
                seen = False
                for images, keys in to_device(self._keyed(self.batches(epoch, position)), self.device):
                    seen = True
                    self._train_step(images, step, keys)
                    step, position = step + 1, position + 1
                    self._after_step(step, epoch, position)
                    if step >= self.settings.steps or self._reached_target():
                        break
                else:
                    if not seen and position == 0:
                        raise TrainingError(
                            "the training data gives no batch; it holds fewer images than batch_size, or none"
                        )
                    epoch, position = epoch + 1, 0
            if self.result.scores[-1][0] != step:
                self._validate(step)
        finally:
            self._restore_best()
            if self.cache is not None:
                self.cache.close()
        if self._reached_target():
            self.result.stopped_by = "target_metric"
        if self.checkpoint is not None and self.world.first:
            self.checkpoint.unlink(missing_ok=True)
        return self.result

    def _together(self, batches: Iterator[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
        """The batches, as long as every process has one: a step needs all of them."""
        while True:
            images = next(batches, None)
            if not self.world.every(images is not None) or images is None:
                return
            yield images

    def _keyed(
        self, batches: Iterator[npt.NDArray[np.float32]]
    ) -> Iterator[tuple[npt.NDArray[np.float32], list[bytes]]]:
        """Each batch with the keys under which the cache knows its images; none without a cache."""
        for images in self._together(batches):
            yield images, ([] if self.cache is None else self.cache.keys(images))

    def _train_step(self, images: torch.Tensor, step: int, keys: Sequence[bytes] = ()) -> None:
        began = time.perf_counter()
        rate = self.settings.learning_rate(step)
        self._set_rates(rate)
        loss = self._loss(images, keys)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scale_optimizer is not None:
            self.scale_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = self.world.mean(float(loss.detach()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {step + 1} (learning rate {rate:.3g}); the best model is kept. "
                "Lower TrainConfig.learning_rate or set TrainConfig.grad_clip"
            )
        self._decay_clips()
        self.optimizer.step()
        if self.scale_optimizer is not None:
            self.scale_optimizer.step()
        self._report(step + 1, value, len(images) * self.world.size, time.perf_counter() - began)

    def _loss(self, images: torch.Tensor, keys: Sequence[bytes]) -> torch.Tensor:
        if self.cache is None:
            teacher = self._taught(images)
        else:
            teacher = self.cache.outputs(keys, images, self._taught)
        student = dict(zip(self._student_nodes, self._compared(images), strict=True))
        return total_loss(self.terms, student, {name: tensor.clone() for name, tensor in teacher.items()})

    def _taught(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's tensors of the compared nodes."""
        with torch.inference_mode():
            _, kept = self.teacher(images, keep=self._teacher_nodes)
        found: dict[str, torch.Tensor] = kept
        return found

    def _decay_clips(self) -> None:
        """d/d log(s) of decay * bound**2 / 2 = decay * bound**2, bound = s * qmax (PACT, arXiv:1805.06085)."""
        if self.settings.clip_decay == 0.0:
            return
        seen: set[int] = set()
        for quantizer in self.student.fake_quantizers():
            log_scale = quantizer.log_scale
            if quantizer.spec.axis is None and log_scale.grad is not None and id(log_scale) not in seen:
                seen.add(id(log_scale))
                bound = quantizer.step() * quantizer.spec.qmax
                log_scale.grad.add_(self.settings.clip_decay * bound**2)

    def _set_rates(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if self.scale_optimizer is not None:
            share = rate / self._peak_rate if self._peak_rate > 0 else 1.0
            for group in self.scale_optimizer.param_groups:
                group["lr"] = self._scale_rate * share

    def _report(self, step: int, loss: float, images: int, seconds: float) -> None:
        speed = images / max(seconds, 1e-9)
        old = self.result.images_per_second
        self.result.images_per_second = speed if old == 0.0 else 0.9 * old + 0.1 * speed
        if step % self.settings.log_every == 0 or step == 1:
            self.result.losses.append((step, loss))
        if self.progress is not None:
            self.progress.step(step, loss, self.result.images_per_second)

    def _after_step(self, step: int, epoch: int, position: int) -> None:
        self.result.steps_done = step
        evaluated = step % self.settings.eval_every == 0
        if evaluated:
            self._validate(step)
        due = evaluated or step % self.settings.checkpoint_every == 0
        if self.checkpoint is not None and due and self.world.first:
            save_checkpoint(self.checkpoint, self._state(epoch, position, step), self.digest)

    # ---- validation and the best state -------------------------------------------------------------------------

    def _validate(self, step: int) -> None:
        learned = [(q.log_scale, q.log_scale.detach().clone()) for q in self.student.fake_quantizers()]
        if self.settle is not None:
            self.settle(self.student)
        try:
            self._judge(step)
        finally:
            for parameter, value in learned:
                parameter.data.copy_(value)

    def _judge(self, step: int) -> None:
        self.student.freeze()
        try:
            score = self.world.broadcast(self.evaluate(self.student))
        finally:
            self.student.freeze(False)
        if math.isnan(score.metric) or any(math.isnan(part) for part in score.rank):
            raise TrainingError(f"the validation score at step {step} is not a number: {score}")
        best = self.result.best_score is None or score.rank > self.result.best_score.rank
        if best:
            self.result.best_step, self.result.best_score = step, score
            self._best = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        self.result.scores.append((step, score))
        if self.progress is not None:
            self.progress.evaluated(step, score, best)

    def _reached_target(self) -> bool:
        best, target = self.result.best_score, self.settings.target
        return target is not None and best is not None and best.metric >= target and self.result.best_step > 0

    def _restore_best(self) -> None:
        if self._best:
            self.student.load_state_dict(self._best)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _state(self, epoch: int, position: int, step: int) -> dict[str, Any]:
        return {
            "epoch": epoch, "position": position, "step": step,
            "student": self.student.state_dict(), "best": self._best,
            "optimizer": self.optimizer.state_dict(),
            "scale_optimizer": None if self.scale_optimizer is None else self.scale_optimizer.state_dict(),
            "scores": [
                [step, s.metric, list(s.rank), s.agreement, s.mean_kl] for step, s in self.result.scores
            ],
            "losses": [list(pair) for pair in self.result.losses],
            "best_step": self.result.best_step,
        }  # fmt: skip

    def _resume(self) -> tuple[int, int, int]:
        wanted = self.checkpoint if self.resume else None
        state = None if wanted is None else self.world.on_first(lambda: load_checkpoint(wanted, self.digest))
        if state is None:
            return 0, 0, 0
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scale_optimizer is not None:
            self.scale_optimizer.load_state_dict(state["scale_optimizer"])
        self._best = state["best"]
        self.result.scores = [(int(s), Score(metric, tuple(rank), *rest)) for s, metric, rank, *rest in state["scores"]]
        self.result.losses = [(int(s), float(v)) for s, v in state["losses"]]
        self.result.best_step = int(state["best_step"])
        self.result.best_score = dict(self.result.scores)[self.result.best_step]
        self.result.steps_done = int(state["step"])
        if self.progress is not None:
            self.progress.resumed(self.result.steps_done)
        return int(state["epoch"]), int(state["position"]), int(state["step"])


class _Compared(nn.Module):
    """forward(images) -> the tensors of the compared nodes, and nothing else.

    DistributedDataParallel expects a gradient for whatever has a part in a result: the model's output would be waited
    for where the loss is that of another node.
    """

    def __init__(self, student: GraphModule, nodes: Sequence[str]) -> None:
        super().__init__()
        self.student, self.nodes = student, tuple(nodes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors in the order of the nodes."""
        _, kept = self.student(images, keep=self.nodes)
        return tuple(kept[node] for node in self.nodes)


def _parallel(compared: _Compared) -> DistributedDataParallel:
    """The same with averaged gradients. All processes get process 0's weights and scales.

    static_graph: which parameters have a gradient (a scale behind the last compared node has none) is found out once.
    No buffer changes in training.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # PyTorch 2.13
    options: dict[str, Any] = {"static_graph": True, "gradient_as_bucket_view": True, buffers: False}
    return DistributedDataParallel(compared, **options)


def scale_rate(given: float | None, weight_rate: float) -> float:
    """The rate of the log-scales: as given, else 100 times the largest rate of the weights, at most 1e-2."""
    return given if given is not None else min(_LARGEST_SCALE_RATE, _SCALES_PER_WEIGHT_RATE * weight_rate)


def scale_parameters(student: GraphModule) -> list[nn.Parameter]:
    """The log-scales that are learned, each once however many tensors share it; that of the images is not."""
    found = {id(q.log_scale): q.log_scale for q in student.fake_quantizers()}
    images = student.quantizer(student.input_name)
    if images is not None:
        del found[id(images.log_scale)]
    return list(found.values())


def _hold_input_scale(student: GraphModule) -> None:
    """The scale of the images stays as it was calibrated: their range does not change while the weights learn.

    Its gradient would need that of the images, the dearest of a first convolution: 6 of the 9 ms of its backward pass
    (MobileNetV3-large, batch 16, 224x224, one thread of a Xeon).
    """
    quantizer = student.quantizer(student.input_name)
    if quantizer is not None:
        quantizer.log_scale.requires_grad_(False)


def weight_parameters(student: GraphModule) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights, biases and other vectors): the second group gets no weight decay."""
    matrices = [p for p in student.weights.values() if p.ndim > 1]
    vectors = [p for p in student.weights.values() if p.ndim <= 1]
    return matrices, vectors
