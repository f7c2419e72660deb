"""Calibration: candidates for scales and weights, of which the one nearest to the float model is kept."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.correction import correct_statistics
from fullquant.calibration.fisher import fisher_qparams
from fullquant.calibration.observers import EveryObserver
from fullquant.calibration.pooled import pooled_qparams
from fullquant.calibration.rounding import compensate_rounding
from fullquant.config import ObserverSettings
from fullquant.data.progress import ProgressBar
from fullquant.distributed import ALONE, World
from fullquant.evaluation.accuracy import kl_divergence
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.simulator import Simulator

log = logging.getLogger("fullquant")
FloatArray = npt.NDArray[np.float32]

# Images that candidates are compared on, that weights are rounded by, and whose channel statistics are corrected (one
# batch that is in memory as a whole). Means and deviations of channels are steady from here on.
_IMAGES = 128
_BATCH = 32


def calibrated(
    model: ir.Model, teacher: GraphModule, placement: Placement, batches: Sequence[FloatArray],
    settings: ObserverSettings, *, correct: bool, probabilities: bool, progress: bool = True, world: World = ALONE,
) -> GraphModule:  # fmt: skip
    """The calibrated student (post-training quantization), in evaluation with the least KL divergence.

    Each candidate observer makes a student, and the one whose outputs on calibration images are nearest to the
    teacher's is kept. It is then tried with weights that are rounded for the output of their layer, with `correct` also
    with corrected channel statistics, and with both. One forward pass serves all observers.

    All processes have all batches and share the work on them; scales and weights are those that process 0 finds.
    """
    return _Calibration(model, teacher, placement, batches, settings, probabilities, progress, world).best(correct)


@dataclass(frozen=True, order=True)
class _Candidate:
    """A calibrated student and how far it is from the teacher: mean KL divergence on the calibration images."""

    distance: float
    name: str
    student: GraphModule = field(compare=False)


@dataclass
class _Calibration:
    """What the candidates have in common."""

    model: ir.Model
    teacher: GraphModule
    placement: Placement
    batches: Sequence[FloatArray]
    settings: ObserverSettings
    probabilities: bool
    progress: bool
    world: World

    def __post_init__(self) -> None:
        self.some = spread(self.batches, _IMAGES)
        own = self.world.own(self.some)
        self.expected = [(batch, Simulator(self.teacher).predict(batch)) for batch in own]

    def best(self, correct: bool) -> GraphModule:
        """The nearest of all candidates."""
        best = min(self._observed())
        # Which observer fits shows without what follows; each of these takes as long as all observers together.
        plain = best
        if self.settings.compensate:
            best = min(best, self._changed(plain, "compensated rounding", self._round))
        if correct:
            corrected = self._changed(plain, "corrected channel statistics", self._correct)
            best = min(best, corrected)
            if self.settings.compensate:
                best = min(best, self._changed(corrected, "compensated rounding", self._round))
        log.info("calibrated with %s", best.name)
        return best.student

    def _observed(self) -> Iterator[_Candidate]:
        """A candidate for each observer that the settings name."""
        settings, teacher = self.settings, self.teacher
        observers = observe_activations(
            teacher, self.model, self.placement, self._counted(),
            lambda: EveryObserver(moving_rate=settings.moving_rate, percentile=settings.percentile), self.world,
        )  # fmt: skip
        # An observer that the user names decides alone; `auto` knows better where a tensor is only averaged.
        averaged: dict[str, QParams] = {}
        if settings.name == "auto":
            averaged = pooled_qparams(teacher, self.model, self.placement, self.some, observers, self.world)
        for name in settings.candidates:
            found = self.world.on_first(lambda name=name: self._scales(name, observers, averaged))  # type: ignore[misc]
            student = GraphModule(self.model, placement=self.placement, qparams=found)
            yield self._judged(name, student.to(next(teacher.parameters()).device))

    def _counted(self) -> Iterator[FloatArray]:
        own = self.world.own(self.batches)
        total = sum(len(images) for images in own)
        with ProgressBar(f"calibrate ({self.settings.name})", total, enabled=self.progress) as bar:
            for images in own:
                yield images
                bar.advance(len(images))

    def _scales(
        self, name: str, observers: Mapping[str, EveryObserver], averaged: Mapping[str, QParams]
    ) -> dict[str, QParams]:
        """All scales by one kind of observer, except those that are known already."""
        if name == "fisher":
            activations = fisher_qparams(
                self.teacher, self.model, self.placement, self.some, observers, probabilities=self.probabilities
            )
        else:
            for observer in observers.values():
                observer.choose(name)
            activations = {**observed_qparams(observers, self.placement), **averaged}
        return activations | calibrate_weights(self.model, self.placement, activations)

    def _changed(self, base: _Candidate, what: str, change: Callable[[GraphModule], object]) -> _Candidate:
        """A copy of a candidate, changed by process 0."""
        student = copy.deepcopy(base.student)
        if self.world.first:
            change(student)
        self.world.share_state(student.state_dict())
        return self._judged(f"{base.name}, {what}", student)

    def _round(self, student: GraphModule) -> None:
        compensate_rounding(student, self.model, self.placement, self.some)

    def _correct(self, student: GraphModule) -> None:
        correct_statistics(self.teacher, student, self.model, self.placement, np.concatenate(self.some))

    def _judged(self, name: str, student: GraphModule) -> _Candidate:
        """Mean KL divergence of the student's outputs from the float model's."""
        student.freeze()
        try:
            simulator = Simulator(student)
            parts = [
                kl_divergence(expected, simulator.predict(batch), probabilities=self.probabilities)
                for batch, expected in self.expected
            ]
        finally:
            student.freeze(False)
        found = _Candidate(float(np.concatenate(self.world.in_order(parts)).mean()), name, student)
        log.info("calibration with %s: KL divergence %.5f", name, found.distance)
        return found


def spread(batches: Sequence[FloatArray], count: int) -> list[FloatArray]:
    """`count` images, evenly spread over the batches, in batches of their own: lists are often sorted by class."""
    total = sum(len(batch) for batch in batches)
    wanted = np.arange(min(count, total)) * total // min(count, total)
    ends = np.cumsum([len(batch) for batch in batches])
    owners = np.searchsorted(ends, wanted, side="right")
    images = [batches[b][k - (ends[b] - len(batches[b]))] for b, k in zip(owners, wanted, strict=True)]
    return [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
