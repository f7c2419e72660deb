"""How good is a model on the validation data: by labels, by the user's callback, or by agreement with the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fullquant.data.feeds import to_numpy
from fullquant.data.progress import ProgressBar
from fullquant.distributed import ALONE, World
from fullquant.errors import DataError
from fullquant.evaluation.accuracy import Accuracy, AccuracyMeter, evaluate_session, images_of
from fullquant.evaluation.outputs import Outputs
from fullquant.runtime.sessions import Session
from fullquant.runtime.simulator import Simulator
from fullquant.training.qat import Score

FloatArray = npt.NDArray[np.float32]


class Program:
    """What the user's callback gets as `program`: a model to run, and its input and output names."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.feed_names = list(session.input_names)
        self.fetch_names = list(session.output_names)


class Executor:
    """What the user's callback gets as `exe`. `run` has the arguments of Paddle's executor that evaluation needs."""

    def run(
        self,
        program: Program,
        feed: Mapping[str, Any] | None = None,
        fetch_list: Sequence[Any] | None = None,
        return_numpy: bool = True,
        **_: Any,
    ) -> list[npt.NDArray[Any]]:
        """The outputs of `fetch_list` (names; all outputs where it is None) as NumPy arrays.

        feed: {input name: NumPy, torch or Paddle array}. DataError for a name that the model does not have.
        """
        feed = feed or {}
        unknown = [name for name in feed if name not in program.feed_names]
        if unknown or len(feed) != len(program.feed_names):
            raise DataError(
                f"exe.run got the inputs {', '.join(feed) or 'none'}; the model has {', '.join(program.feed_names)}"
            )
        arrays = {name: np.ascontiguousarray(to_numpy(value), dtype=np.float32) for name, value in feed.items()}
        outputs = dict(zip(program.fetch_names, program.session.run(arrays), strict=True))
        wanted = program.fetch_names if fetch_list is None else [getattr(item, "name", item) for item in fetch_list]
        missing = [name for name in wanted if name not in outputs]
        if missing:
            raise DataError(f"exe.run: no output {missing[0]!r}; the model has {', '.join(program.fetch_names)}")
        return [outputs[name] for name in wanted]


class Validation(Protocol):
    """metric(session) is the headline number; score() what checkpoints are compared by, larger is better.

    start: the metric of the calibrated model, before training.
    """

    name: str
    start: float | None

    def metric(self, session: Session) -> float: ...

    def score(self, simulator: Simulator) -> Score: ...


class LabelledValidation:
    """Top-1 and agreement with the float model on labelled images.

    A state below the top-1 of the calibrated start ranks behind all others. Above it the sum of top-1 and agreement
    decides, then the KL divergence: two states differ in top-1 on few images, mostly by chance, and the agreement
    tells more of what is left of the float model.

    world: each process has its share of the images in `loader`; the numbers are those of all.
    """

    name = "top-1"
    start: float | None = None

    def __init__(
        self, loader: Any, teacher: Simulator, *, probabilities: bool, progress: bool = True, world: World = ALONE
    ) -> None:
        self.loader, self.probabilities, self.progress, self.world = loader, probabilities, progress, world
        self.reference = Outputs()
        meter = AccuracyMeter(outputs_are_probabilities=probabilities, engine="the float model")
        with ProgressBar("evaluate the float model", images_of(loader), enabled=progress) as bar:
            for images, labels in loader:
                outputs = teacher.predict(images)
                meter.update(outputs, labels, outputs)
                self.reference.append(outputs)
                bar.advance(len(images))
        meter.merge(world)
        self.float_accuracy = meter.result()

    def accuracy(self, predict: Callable[[FloatArray], FloatArray], engine: str) -> Accuracy:
        """Top-1, top-5, agreement and KL divergence of one model."""
        return evaluate_session(
            predict, self.loader, self.reference, engine=engine,
            outputs_are_probabilities=self.probabilities, progress=self.progress, world=self.world,
        )  # fmt: skip

    def metric(self, session: Session) -> float:
        return self.accuracy(lambda x: session.run({session.input_names[0]: x})[0], session.engine).top1

    def score(self, simulator: Simulator) -> Score:
        found = self.accuracy(simulator.predict, "the quantized model")
        kept = 1.0 if self.start is None or found.top1 >= self.start else 0.0
        return Score(found.top1, (kept, found.top1 + found.agreement, -found.mean_kl), found.agreement, found.mean_kl)


class CallbackValidation:
    """The user's `eval_callback(exe, program, feed_names, fetch_list)`; larger is better, as in PaddleSlim.

    It is called in process 0, and its number is everyone's.
    """

    name = "eval_callback"
    start: float | None = None

    def __init__(self, callback: Callable[..., Any], world: World = ALONE) -> None:
        self.callback, self.world = callback, world

    def metric(self, session: Session) -> float:
        return self.world.on_first(lambda: self._call(session))

    def _call(self, session: Session) -> float:
        program = Program(session)
        result = self.callback(Executor(), program, program.feed_names, program.fetch_names)
        try:
            return float(np.asarray(result).reshape(-1)[0])
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(f"eval_callback must return a number, not {result!r}") from error

    def score(self, simulator: Simulator) -> Score:
        return Score(self.metric(simulator))


class AgreementValidation:
    """No validation data: the share of training images with the teacher's argmax, then the KL divergence.

    batches: all of them in every process; each takes its `own` share.
    """

    name = "agreement on calibration images"
    start: float | None = None

    def __init__(
        self, batches: Sequence[FloatArray], teacher: Simulator, *, probabilities: bool, world: World = ALONE
    ) -> None:
        self.batches, self.probabilities, self.world = list(world.own(batches)), probabilities, world
        self.reference = [teacher.predict(images) for images in self.batches]

    def _judge(self, predict: Callable[[FloatArray], FloatArray]) -> Accuracy:
        meter = AccuracyMeter(outputs_are_probabilities=self.probabilities)
        for images, reference in zip(self.batches, self.reference, strict=True):
            meter.update(predict(images), np.full(len(images), -1, np.int64), reference)
        meter.merge(self.world)
        return meter.result()

    def metric(self, session: Session) -> float:
        return self._judge(lambda x: session.run({session.input_names[0]: x})[0]).agreement

    def score(self, simulator: Simulator) -> Score:
        found = self._judge(simulator.predict)
        return Score(found.agreement, (found.agreement, -found.mean_kl), found.agreement, found.mean_kl)


def labelled(source: Any) -> bool:
    """Whether the first batch of (images, labels) carries a label for each image. DataError where there is none."""
    first = next(iter(source), None)
    if first is None:
        raise DataError("the validation data gives no image that can be read; see the warnings before")
    return bool((np.asarray(first[1]) >= 0).all())
