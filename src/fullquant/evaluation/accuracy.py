"""How good outputs are: against labels, and against the float model's outputs on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.data.loader import ImageLoader
from fullquant.data.progress import ProgressBar
from fullquant.distributed import ALONE, World
from fullquant.errors import DataError, EngineError

Array = npt.NDArray[np.floating]
Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
Reference = Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32] | Predict

_SMALLEST_PROBABILITY = 1e-12  # a probability that float32 softmax rounds to 0 counts as this in the divergence
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """Shares are fractions 0..1; NaN where nothing could be measured (no labels, no reference).

    top1, top5: share of the labelled images whose label has the largest output, one of the five largest.
    agreement: share of the images with the same argmax as the reference.
    mean_kl: mean over the images of KL(reference || outputs) = sum p ln(p / q), in nats.
    count: images seen. labelled: those with a label (0 or more); None means all of them.
    """

    top1: float
    top5: float
    agreement: float
    mean_kl: float
    count: int
    labelled: int | None = None

    @property
    def top1_stderr(self) -> float:
        """Standard error of top1: sqrt(p (1 - p) / n), n labelled images."""
        n = self.count if self.labelled is None else self.labelled
        return math.sqrt(self.top1 * (1 - self.top1) / n) if n else math.nan

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of top1: it stays inside 0..1 and holds near the ends too."""
        n = self.count if self.labelled is None else self.labelled
        if not n or math.isnan(self.top1):
            return math.nan, math.nan
        square = _Z95**2 / n
        centre = (self.top1 + square / 2) / (1 + square)
        half = _Z95 / (1 + square) * math.sqrt(self.top1 * (1 - self.top1) / n + square / (4 * n))
        return max(0.0, centre - half), min(1.0, centre + half)


class AccuracyMeter:
    """Adds up batches. Of equal outputs the one with the smaller index ranks first, as np.argmax has it.

    outputs_are_probabilities: the model ends in a softmax; otherwise outputs are logits (matters for mean_kl only).
    engine: the name in error messages.
    """

    def __init__(self, *, outputs_are_probabilities: bool = False, engine: str = "the model") -> None:
        self._probabilities = outputs_are_probabilities
        self._engine = engine
        self._count = self._labelled = self._compared = 0
        self._top1 = self._top5 = self._agreed = 0
        self._divergence = 0.0
        self.non_finite = 0

    def update(self, outputs: Array, labels: npt.NDArray[np.integer], reference: Array | None = None) -> None:
        """Add one batch: outputs [B, C] (or [B, C, 1, 1]), labels [B] with -1 for unknown, reference like outputs.

        Images with NaN or infinite outputs are counted, not judged: `result` reports them as an error.
        """
        scores = _rows(outputs, self._engine)
        targets = np.asarray(labels).reshape(-1)
        if len(targets) != len(scores):
            raise EngineError(f"{self._engine} gave {len(scores)} outputs for {len(targets)} images")
        if targets.size and targets.max() >= scores.shape[1]:
            raise DataError(
                f"label {targets.max()} does not fit a model of {scores.shape[1]} classes: other list, or other model"
            )
        finite = np.isfinite(scores).all(axis=1)
        self._count += len(scores)
        self.non_finite += int(np.count_nonzero(~finite))
        self._update_labelled(scores[finite], targets[finite])
        if reference is not None:
            expected = _rows(reference, "the reference")
            if expected.shape != scores.shape:
                raise EngineError(
                    f"{self._engine} gave outputs of shape {list(scores.shape)}, the reference {list(expected.shape)}"
                )
            comparable = finite & np.isfinite(expected).all(axis=1)
            self._update_reference(scores[comparable], expected[comparable])

    def merge(self, world: World) -> None:
        """Adds up what all processes have counted, each on its own images."""
        counts = (self._count, self._labelled, self._compared, self._top1, self._top5, self._agreed, self.non_finite)
        sums = (int(n) for n in world.sum(counts))
        self._count, self._labelled, self._compared, self._top1, self._top5, self._agreed, self.non_finite = sums
        self._divergence = float(world.sum(self._divergence))

    def result(self) -> Accuracy:
        """What was measured. Raises EngineError naming the engine if any output was NaN or infinite."""
        if self.non_finite:
            raise EngineError(
                f"{self._engine} gave NaN or infinite outputs for {self.non_finite} of {self._count} images"
            )
        return self.so_far()

    def so_far(self) -> Accuracy:
        """The same over the finite outputs only, without complaint: for progress displays."""
        return Accuracy(
            top1=_share(self._top1, self._labelled),
            top5=_share(self._top5, self._labelled),
            agreement=_share(self._agreed, self._compared),
            mean_kl=_share(self._divergence, self._compared),
            count=self._count,
            labelled=self._labelled,
        )

    def _update_labelled(self, scores: Array, targets: npt.NDArray[np.integer]) -> None:
        known = targets >= 0
        ranks = label_ranks(scores[known], targets[known])
        self._labelled += len(ranks)
        self._top1 += int(np.count_nonzero(ranks == 0))
        self._top5 += int(np.count_nonzero(ranks < 5))

    def _update_reference(self, scores: Array, expected: Array) -> None:
        self._compared += len(scores)
        self._agreed += int(np.count_nonzero(scores.argmax(axis=1) == expected.argmax(axis=1)))
        self._divergence += float(kl_divergence(expected, scores, probabilities=self._probabilities).sum())


def label_ranks(scores: Array, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Place of the label among the outputs [n, C], 0 for the largest; equal outputs rank by index. [n]."""
    own = np.take_along_axis(scores, labels.astype(np.intp)[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    return np.asarray(ahead.sum(axis=1), np.int64)


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """x - ln(sum(exp(x))) along the last axis, shifted by the maximum so that nothing overflows; float64."""
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)


def kl_divergence(reference: Array, outputs: Array, *, probabilities: bool = False) -> npt.NDArray[np.float64]:
    """KL(reference || outputs) = sum p ln(p / q) per row of [n, C], in nats.

    p and q are the softmax of the logits, or with `probabilities` the rows themselves, raised to at least 1e-12 and
    divided by their sum (an int8 softmax does not add up to 1).
    """
    if probabilities:
        p, q = (np.maximum(np.asarray(rows, np.float64), _SMALLEST_PROBABILITY) for rows in (reference, outputs))
        log_p, log_q = (np.log(rows / rows.sum(axis=-1, keepdims=True)) for rows in (p, q))
    else:
        log_p, log_q = log_softmax(reference), log_softmax(outputs)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), np.float64)


def collect_outputs(
    predict: Predict, loader: Batches, *, description: str = "run the float model", progress: bool = True
) -> list[npt.NDArray[np.float32]]:
    """The outputs of every batch, for use as a reference."""
    outputs = []
    with ProgressBar(description, images_of(loader), enabled=progress) as bar:
        for images, _ in loader:
            outputs.append(np.array(predict(images)))  # a copy: sessions may reuse their buffers
            bar.advance(len(images))
    return outputs


def evaluate_session(
    predict: Predict,
    loader: Batches,
    reference: Reference | None = None,
    *,
    engine: str = "the model",
    outputs_are_probabilities: bool = False,
    progress: bool = True,
    world: World = ALONE,
) -> Accuracy:
    """Run `predict` ([B, C, H, W] -> [B, classes]) over the loader and judge its outputs.

    world: processes whose loaders share the images; each gets the accuracy on all of them.

    reference: the float outputs: a list with one array a batch, one array [n, classes] of all images in order, or a
        function of the images. Raises DataError if it ends before the images do.
    """
    meter = AccuracyMeter(outputs_are_probabilities=outputs_are_probabilities, engine=engine)
    expected = _ReferenceReader(reference)
    with ProgressBar(f"evaluate {engine}", images_of(loader), enabled=progress) as bar:
        for images, labels in loader:
            meter.update(predict(images), labels, expected.next(images))
            bar.advance(len(images), note=_note(meter))
    meter.merge(world)
    return meter.result()


class _ReferenceReader:
    """The part of the reference that belongs to the next batch."""

    def __init__(self, reference: Reference | None) -> None:
        self._reference = reference
        self._batch = self._image = 0

    def next(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        if self._reference is None or callable(self._reference):
            return None if self._reference is None else self._reference(images)
        if isinstance(self._reference, np.ndarray):
            expected = self._reference[self._image : self._image + len(images)]
        else:
            expected = (
                self._reference[self._batch] if self._batch < len(self._reference) else np.empty((0, 0), np.float32)
            )
        self._batch += 1
        self._image += len(images)
        if len(expected) != len(images):
            raise DataError(f"the reference outputs do not belong to these images (batch {self._batch - 1} differs)")
        return expected


def _rows(values: Array, engine: str) -> Array:
    """[B, C] from [B, C] or [B, C, 1, ...]."""
    array = np.asarray(values)
    if array.ndim < 2 or math.prod(array.shape[2:]) != 1:
        raise EngineError(f"{engine} gave outputs of shape {list(array.shape)}, expected [batch, classes]")
    return array.reshape(array.shape[:2])


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def images_of(loader: Batches) -> int | None:
    """How many images a loader gives in an epoch, where that is known."""
    if isinstance(loader, ImageLoader):
        return loader.image_count
    return sum(len(images) for images, _ in loader) if isinstance(loader, (list, tuple)) else None


def _note(meter: AccuracyMeter) -> str:
    now = meter.so_far()
    shown = [("top-1", now.top1), ("agreement", now.agreement)]
    return "  ".join(f"{name} {value:.4f}" for name, value in shown if not math.isnan(value))
