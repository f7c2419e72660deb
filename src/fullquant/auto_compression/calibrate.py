"""Calibration: candidates for scales and weights, of which the one nearest to the float model is kept."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.correction import correct_statistics
from fullquant.calibration.fisher import averaged_tensors, fisher_qparams
from fullquant.calibration.observers import EveryObserver
from fullquant.calibration.rounding import compensate_rounding
from fullquant.calibration.sums import agreeing_sums
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

# Images that tell of expected divergences and of the inputs of layers, and whose channel statistics are corrected (one
# batch that is in memory as a whole): so many of 224x224, more of smaller ones, whose last layers have few pixels to
# take statistics from. Candidates are compared on as many others, where there are: on those that it was fitted to, a
# correction looks better than it is.
_FEWEST, _MOST, _PIXELS = 64, 512, 64 * 224 * 224
# They come in so many batches, each spread over the list.
_BATCHES = 8
# After the first two of them one observer beside the preferred one is looked at further, if it is not so many times
# behind. Few images carry most of the divergence: after one batch of a text orientation model an observer that was ten
# times worse on all was taken for the second.
_SCREENED, _HOPELESS = 2, 1.5
# The preferred observer gives way to one that is nearer by so many standard errors of their difference. The divergence
# of some images is ten times that of others: on 64 images 15% between two observers is chance as often as not.
_PREFERRED, _CERTAIN = "fisher", 1.5
# Rounding for the output of the layers mends the means as well: where it takes so much off the divergence, the
# correction of channel statistics, which takes as long, is not tried.
_MENDED = 0.7


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
        height, width = self.batches[0].shape[2:]
        count, total = max(_FEWEST, min(_MOST, _PIXELS // (height * width))), sum(map(len, self.batches))
        if total >= 2 * _FEWEST:
            count = min(count, total // 2)
        self.some = spread(self.batches, count)
        self.observers, outputs = self._look()
        judged, self.logits = spread(self.batches, count, others=True), _logits(self.model)
        if self.logits is None:
            self.expected = list(zip(judged, spread(outputs, count, others=True), strict=True))
        else:
            float_model = Simulator(self.teacher)
            self.expected = [(batch, self._answer(float_model, batch)) for batch in judged]

    def _look(self) -> tuple[dict[str, EveryObserver], list[FloatArray]]:
        """The float model's one pass over all images: (observers, outputs of each batch)."""
        settings, outputs = self.settings, list[FloatArray]()
        observers = observe_activations(
            self.teacher, self.model, self.placement, self._counted(),
            lambda: EveryObserver(moving_rate=settings.moving_rate, percentile=settings.percentile), self.world,
            outputs.append,
        )  # fmt: skip
        return observers, self.world.in_order(outputs)

    def best(self, correct: bool) -> GraphModule:
        """The nearest of all candidates."""
        # Which observer fits shows without what follows, nearly: the corrections are tried on two.
        first, *others = self._observed()
        best = first
        if self.settings.compensate:
            best = min(best, self._changed(first, "compensated rounding", self._round))
        if correct and best.distance > _MENDED * first.distance:
            for plain in (first, *others[:1]):
                corrected = self._changed(plain, "corrected channel statistics", self._correct)
                best = min(best, corrected)
                if self.settings.compensate:
                    best = min(best, self._changed(corrected, "compensated rounding", self._round))
        log.info("calibrated with %s", best.name)
        return best.student

    def _observed(self) -> list[_Candidate]:
        """The best of the candidates that the settings name, then the second where it was near."""
        students = dict(self._students())
        if len(students) == 1:
            ((name, student),) = students.items()
            return [self._judged(name, student)]
        known = {name: self._divergences(student, self.expected[:_SCREENED]) for name, student in students.items()}
        nearest = min(known, key=lambda name: float(known[name].mean()))
        first = _PREFERRED if _PREFERRED in known else nearest
        second = min((name for name in known if name != first), key=lambda name: float(known[name].mean()))
        left = [first, second] if known[second].mean() <= _HOPELESS * known[first].mean() else [first]
        for name in known:
            if name not in left:
                log.info("calibration with %s: KL divergence %.5f on the first images", name, known[name].mean())
        for name in left:
            known[name] = np.concatenate([known[name], self._divergences(students[name], self.expected[_SCREENED:])])
        found = [self._candidate(name, students[name], known[name]) for name in left]
        return found[::-1] if len(left) > 1 and _clearly_less(known[second], known[first]) else found

    def _students(self) -> Iterator[tuple[str, GraphModule]]:
        """A student for each observer that the settings name."""
        fisher: dict[str, QParams] = {}
        if "fisher" in self.settings.candidates:
            fisher = self.world.on_first(self._fisher)
        for name in self.settings.candidates:
            found = self.world.on_first(lambda name=name: self._scales(name, fisher))  # type: ignore[misc]
            student = GraphModule(self.model, placement=self.placement, qparams=found)
            yield name, student.to(next(self.teacher.parameters()).device)

    def _counted(self) -> Iterator[FloatArray]:
        own = self.world.own(self.batches)
        total = sum(len(images) for images in own)
        with ProgressBar(f"calibrate ({self.settings.name})", total, enabled=self.progress) as bar:
            for images in own:
                yield images
                bar.advance(len(images))

    def _fisher(self) -> dict[str, QParams]:
        return fisher_qparams(
            self.teacher, self.model, self.placement, self.some[::2], self.observers, probabilities=self.probabilities
        )

    def _scales(self, name: str, fisher: Mapping[str, QParams]) -> dict[str, QParams]:
        """All scales by one kind of observer.

        An observer that the user names decides alone. `auto` knows better where a tensor is only averaged: a step that
        serves the few large values rounds the many small ones to zero, and that does not cancel in the average.
        Measured on mobilenetv3_large_cifar10, min-max scales: the tensor in front of the last average pool alone
        causes a KL divergence of 0.56, more than all others together.
        """
        if name == "fisher":
            activations = dict(fisher)
        else:
            for observer in self.observers.values():
                observer.choose(name)
            averaged = averaged_tensors(self.model, self.placement) if fisher else []
            activations = observed_qparams(self.observers, self.placement) | {t: fisher[t] for t in averaged}
        activations = agreeing_sums(self.model, self.placement, activations)
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
        return self._candidate(name, student, self._divergences(student, self.expected))

    def _candidate(self, name: str, student: GraphModule, divergences: FloatArray) -> _Candidate:
        found = _Candidate(float(divergences.mean()), name, student)
        log.info("calibration with %s: KL divergence %.5f", name, found.distance)
        return found

    def _answer(self, simulator: Simulator, batch: FloatArray) -> FloatArray:
        """What the candidates are compared by: the outputs, or the logits in front of a softmax."""
        if self.logits is None:
            return simulator.predict(batch)
        return np.asarray(simulator.tensors(batch, [self.logits])[self.logits], np.float32)

    def _divergences(self, student: GraphModule, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> FloatArray:
        """KL divergence of the student's outputs from the float model's on (images, outputs); processes share them."""
        student.freeze()
        try:
            simulator = Simulator(student)
            probabilities = self.probabilities and self.logits is None
            parts = [
                kl_divergence(expected, self._answer(simulator, batch), probabilities=probabilities)
                for batch, expected in self.world.own(pairs)
            ]
        finally:
            student.freeze(False)
        return np.concatenate([np.zeros(0), *self.world.in_order(parts)]).astype(np.float32)


def _clearly_less(a: FloatArray, b: FloatArray) -> bool:
    """Whether the mean of a is below that of b by more than chance, image by image."""
    difference = b - a
    return float(difference.mean()) > _CERTAIN * float(difference.std()) / math.sqrt(len(difference))


def _logits(model: ir.Model) -> str | None:
    """The tensor [N, C] that the softmax at the end of a model reads; None for a model without.

    An int8 probability below half a step is zero, and its share of the divergence then depends on where zero is cut
    off: for a model that is nearly always sure, the same for all candidates, and a hundred times what they differ by.
    """
    producer = model.graph.outputs[0].producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Softmax" else None
    if source is None or source.producer() is None or source.shape is None or len(source.shape) != 2:
        return None
    return source.name


def spread(batches: Sequence[FloatArray], count: int, *, others: bool = False) -> list[FloatArray]:
    """`count` images, evenly spread over the batches, in 8 batches of their own, each spread likewise.

    Lists are often sorted by class. others: as many images that are not among those, if there are so many in all.
    """
    total = sum(len(batch) for batch in batches)
    count = min(count, total)
    wanted = np.arange(count) * total // count + (total // count // 2 if others else 0)
    ends = np.cumsum([len(batch) for batch in batches])
    owners = np.searchsorted(ends, wanted, side="right")
    images = [batches[b][k - (ends[b] - len(batches[b]))] for b, k in zip(owners, wanted, strict=True)]
    return [np.stack(images[first::_BATCHES]) for first in range(min(_BATCHES, len(images)))]
