"""Several engines on the same images, in one pass over the data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.data.progress import ProgressBar
from fullquant.errors import EngineError, FullquantError
from fullquant.evaluation.accuracy import Accuracy, AccuracyMeter, Batches, Predict, images_of

FLOAT = "float"
SIMULATED = "simulated"


@dataclass(frozen=True)
class ComparisonRow:
    """One engine's line of the table.

    accuracy: None where the engine failed; `error` then says how.
    same_as: share of the images with the same argmax as each engine of `against` that ran ("float", "simulated").
    seconds_per_image: time inside the engine; batches of the loader's size.
    """

    name: str
    accuracy: Accuracy | None
    same_as: Mapping[str, float]
    seconds_per_image: float
    error: str = ""

    @property
    def same_as_float(self) -> float:
        """Share with the float model's argmax, NaN if unknown."""
        return self.same_as.get(FLOAT, math.nan)

    @property
    def same_as_simulated(self) -> float:
        """Share with the simulation's argmax, NaN if unknown."""
        return self.same_as.get(SIMULATED, math.nan)


@dataclass
class _Runner:
    """One engine during the pass."""

    predict: Predict
    meter: AccuracyMeter
    choices: list[npt.NDArray[np.intp]]
    seconds: float = 0.0
    error: str = ""

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """Outputs of one batch; None once the engine has failed."""
        if self.error:
            return None
        began = time.perf_counter()
        try:
            return np.array(self.predict(images))  # a copy: sessions may reuse their buffers
        except FullquantError as error:
            self.error = str(error)
            return None
        finally:
            self.seconds += time.perf_counter() - began

    def judge(
        self,
        outputs: npt.NDArray[np.float32] | None,
        labels: npt.NDArray[np.int64],
        reference: npt.NDArray[np.float32] | None,
    ) -> None:
        if outputs is None:
            return
        try:
            self.meter.update(outputs, labels, reference)
        except EngineError as error:
            self.error = str(error)
            return
        self.choices.append(outputs.reshape(len(outputs), -1).argmax(axis=1))


def compare_engines(
    engines: Mapping[str, Predict],
    loader: Batches,
    *,
    reference: str = FLOAT,
    against: tuple[str, ...] = (FLOAT, SIMULATED),
    outputs_are_probabilities: bool = False,
    progress: bool = True,
) -> list[ComparisonRow]:
    """Run every engine on every batch; one row each, in the order of `engines`.

    engines: functions [B, C, H, W] -> [B, classes] by name.
    reference: the engine whose outputs agreement and mean_kl are measured against, if it is among them.
    against: engines whose argmax every other is compared with, image by image.
    An engine that fails with a FullquantError, or gives NaN, becomes a row with its error; the others go on.
    """
    runners = {
        name: _Runner(predict, AccuracyMeter(outputs_are_probabilities=outputs_are_probabilities, engine=name), [])
        for name, predict in engines.items()
    }
    count = 0
    with ProgressBar(f"compare {len(runners)} engines", images_of(loader), enabled=progress) as bar:
        for images, labels in loader:
            outputs = {name: runner.run(images) for name, runner in runners.items()}
            for name, runner in runners.items():
                runner.judge(outputs[name], labels, outputs.get(reference))
            count += len(images)
            bar.advance(len(images))
    return [_row(name, runner, runners, against, count) for name, runner in runners.items()]


def _row(
    name: str, runner: _Runner, runners: Mapping[str, _Runner], against: tuple[str, ...], count: int
) -> ComparisonRow:
    accuracy: Accuracy | None = None
    if not runner.error:
        try:
            accuracy = runner.meter.result()
        except EngineError as error:
            runner.error = str(error)
    seconds = runner.seconds / count if count else math.nan
    if accuracy is None:
        return ComparisonRow(name, None, {}, seconds, runner.error)
    same = {
        other: _same_share(runner, runners[other])
        for other in against
        if other in runners and not runners[other].error and not runners[other].meter.non_finite
    }
    return ComparisonRow(name, accuracy, same, seconds)


def _same_share(left: _Runner, right: _Runner) -> float:
    if not left.choices:
        return math.nan
    return float(np.mean(np.concatenate(left.choices) == np.concatenate(right.choices)))
