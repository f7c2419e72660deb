"""The schedules that TrainConfig.learning_rate can name, with their parameters as in paddle.optimizer.lr.

What each computes is in training/schedules.py. Source of names, defaults and ranges: PaddlePaddle 3.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from fullquant.config.settings import Fixed, Settings, nearest, require
from fullquant.errors import ConfigError

_PADDLE_STATE: Mapping[str, Fixed] = {
    "last_epoch": Fixed((-1,), "a run starts at step 0; to go on from a checkpoint use TrainConfig.resume"),
    "verbose": Fixed((False,), "the rate is logged with the loss; see TrainConfig.logging_iter"),
}


class LearningRateSchedule(Settings):
    """Base of the schedules. One step is one training iteration, as in PaddleSlim."""

    FIXED: ClassVar[Mapping[str, Fixed]] = _PADDLE_STATE

    def _require(self, condition: bool, key: str, rule: str) -> None:
        require(condition, f"{self.SECTION}.{key}: {getattr(self, key)!r} must be {rule}")

    def _check_rate(self, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) >= 0, name, ">= 0")


@dataclass(frozen=True)
class NoamDecay(LearningRateSchedule):
    """rate * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5)."""

    SECTION: ClassVar[str] = "NoamDecay"
    d_model: int
    warmup_steps: int
    learning_rate: float = 1.0

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(self.d_model > 0, "d_model", "> 0")
        self._require(self.warmup_steps > 0, "warmup_steps", "> 0")


@dataclass(frozen=True)
class PiecewiseDecay(LearningRateSchedule):
    """values[i] between boundaries[i-1] (included) and boundaries[i] (excluded)."""

    SECTION: ClassVar[str] = "PiecewiseDecay"
    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def check(self) -> None:
        self._require(len(self.boundaries) > 0 and _increasing(self.boundaries), "boundaries", "increasing, not empty")
        self._require(len(self.values) == len(self.boundaries) + 1, "values", "one longer than boundaries")
        self._require(min(self.values) >= 0, "values", ">= 0")


@dataclass(frozen=True)
class NaturalExpDecay(LearningRateSchedule):
    """rate * exp(-gamma * step)."""

    SECTION: ClassVar[str] = "NaturalExpDecay"
    learning_rate: float
    gamma: float

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(self.gamma > 0, "gamma", "> 0")


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """rate / (1 + gamma * step)."""

    SECTION: ClassVar[str] = "InverseTimeDecay"
    learning_rate: float
    gamma: float

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(self.gamma >= 0, "gamma", ">= 0")  # Paddle takes any; below 0 the rate has a pole


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """(rate - end_lr) * (1 - step / decay_steps)^power + end_lr; with `cycle` decay_steps grows by whole multiples."""

    SECTION: ClassVar[str] = "PolynomialDecay"
    learning_rate: float
    decay_steps: int
    end_lr: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def check(self) -> None:
        self._check_rate("learning_rate", "end_lr")
        self._require(self.decay_steps > 0, "decay_steps", "> 0")
        self._require(self.power > 0, "power", "> 0")


@dataclass(frozen=True)
class ExponentialDecay(LearningRateSchedule):
    """rate * gamma^step."""

    SECTION: ClassVar[str] = "ExponentialDecay"
    learning_rate: float
    gamma: float

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(0 < self.gamma < 1, "gamma", "between 0 and 1")


@dataclass(frozen=True)
class MultiStepDecay(LearningRateSchedule):
    """rate * gamma^(number of milestones passed)."""

    SECTION: ClassVar[str] = "MultiStepDecay"
    learning_rate: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(_increasing(self.milestones), "milestones", "increasing")
        self._require(0 <= self.gamma < 1, "gamma", "at least 0 and below 1")


@dataclass(frozen=True)
class StepDecay(LearningRateSchedule):
    """rate * gamma^floor(step / step_size)."""

    SECTION: ClassVar[str] = "StepDecay"
    learning_rate: float
    step_size: int
    gamma: float = 0.1

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(self.step_size > 0, "step_size", "> 0")
        self._require(0 <= self.gamma < 1, "gamma", "at least 0 and below 1")


@dataclass(frozen=True)
class CosineAnnealingDecay(LearningRateSchedule):
    """eta_min + (rate - eta_min) * (1 + cos(pi * step / T_max)) / 2, rising again after T_max.

    T_max: None means that the run fills it in: PaddleSlim's run.py takes total_images / (batch_size * processes).
    """

    SECTION: ClassVar[str] = "CosineAnnealingDecay"
    learning_rate: float
    T_max: int | None = None
    eta_min: float = 0.0

    def check(self) -> None:
        self._check_rate("learning_rate", "eta_min")
        self._require(self.T_max is None or self.T_max > 0, "T_max", "> 0")


@dataclass(frozen=True)
class CosineAnnealingWarmRestarts(LearningRateSchedule):
    """Cosine from rate to eta_min over T_0 steps, then again, each cycle T_mult times as long as the one before."""

    SECTION: ClassVar[str] = "CosineAnnealingWarmRestarts"
    learning_rate: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def check(self) -> None:
        self._check_rate("learning_rate", "eta_min")
        self._require(self.T_0 > 0, "T_0", "> 0")
        self._require(self.T_mult >= 1, "T_mult", ">= 1")


@dataclass(frozen=True)
class OneCycleLR(LearningRateSchedule):
    """Up to max_learning_rate in phase_pct of total_steps, then down to end_learning_rate."""

    SECTION: ClassVar[str] = "OneCycleLR"
    max_learning_rate: float
    total_steps: int
    divide_factor: float = 25.0
    end_learning_rate: float = 0.0001
    phase_pct: float = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    three_phase: bool = False

    def check(self) -> None:
        self._check_rate("max_learning_rate", "end_learning_rate")
        self._require(self.divide_factor > 0, "divide_factor", "> 0")
        upper = 0.5 if self.three_phase else 1.0
        self._require(0 < self.phase_pct < upper, "phase_pct", f"between 0 and {upper}")
        # Below this the first phase has no step and Paddle's formula divides by zero.
        self._require(self.phase_pct * self.total_steps > 1, "total_steps", "so large that phase_pct of it is over 1")


@dataclass(frozen=True)
class CyclicLR(LearningRateSchedule):
    """Triangles between base_learning_rate and max_learning_rate; `mode` says how their height changes."""

    SECTION: ClassVar[str] = "CyclicLR"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        **_PADDLE_STATE,
        "scale_fn": Fixed((None,), "a function cannot be written in YAML; use mode"),
        "scale_mode": Fixed(("cycle",), "it belongs to scale_fn, which cannot be written in YAML; use mode"),
    }
    base_learning_rate: float
    max_learning_rate: float
    step_size_up: int
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    exp_gamma: float = 1.0

    def check(self) -> None:
        self._check_rate("base_learning_rate", "max_learning_rate")
        self._require(self.step_size_up > 0, "step_size_up", "> 0")
        self._require(self.step_size_down is None or self.step_size_down > 0, "step_size_down", "> 0")


@dataclass(frozen=True)
class LinearLR(LearningRateSchedule):
    """rate times a factor that goes from start_factor to end_factor in total_steps, and stays."""

    SECTION: ClassVar[str] = "LinearLR"
    learning_rate: float
    total_steps: int
    start_factor: float = 1.0 / 3
    end_factor: float = 1.0

    def check(self) -> None:
        self._check_rate("learning_rate")
        self._require(self.total_steps > 0, "total_steps", "> 0")
        self._require(0 < self.start_factor <= 1, "start_factor", "above 0 and at most 1")
        self._require(0 <= self.end_factor <= 1, "end_factor", "between 0 and 1")


def _inner_rate(value: object, where: str) -> object:
    return read_learning_rate(value, where)


@dataclass(frozen=True)
class LinearWarmup(LearningRateSchedule):
    """From start_lr to end_lr in warmup_steps, then `learning_rate`: a number, or a schedule that starts there.

    A nested schedule is ours: PaddleSlim's YAML can only name a number here.
    """

    SECTION: ClassVar[str] = "LinearWarmup"
    learning_rate: float | LearningRateSchedule = field(metadata={"before": _inner_rate})
    warmup_steps: int
    start_lr: float
    end_lr: float

    def check(self) -> None:
        self._require(self.warmup_steps > 0, "warmup_steps", "> 0")
        self._check_rate("start_lr")
        self._require(self.end_lr > self.start_lr, "end_lr", f"above start_lr {self.start_lr}")


LearningRate: TypeAlias = float | LearningRateSchedule

SCHEDULES: Mapping[str, type[LearningRateSchedule]] = {
    cls.SECTION: cls
    for cls in (
        NoamDecay,
        PiecewiseDecay,
        NaturalExpDecay,
        InverseTimeDecay,
        PolynomialDecay,
        LinearWarmup,
        ExponentialDecay,
        MultiStepDecay,
        StepDecay,
        CosineAnnealingDecay,
        OneCycleLR,
        CyclicLR,
        LinearLR,
        CosineAnnealingWarmRestarts,
    )
}
REFUSED_SCHEDULES: Mapping[str, str] = {
    "LambdaDecay": "its lr_lambda is a function, which cannot be written in YAML; use PiecewiseDecay",
    "MultiplicativeDecay": "its lr_lambda is a function, which cannot be written in YAML; use PiecewiseDecay",
    "ReduceOnPlateau": "it follows a metric, not the step, and PaddleSlim cannot drive it either; use MultiStepDecay",
}


def read_typed(
    value: Mapping[Any, Any], known: Mapping[str, type[Settings]], refused: Mapping[str, str], where: str
) -> Settings:
    """The Settings that a mapping {type: Name, key: value, ...} names. ConfigError for an unknown or refused name."""
    if "type" not in value:
        raise ConfigError(f"{where}: 'type' is missing; one of {', '.join(known)}")
    name = value["type"]
    if not isinstance(name, str):
        raise ConfigError(f"{where}: type {name!r} is not a name; one of {', '.join(known)}")
    if name in refused:
        raise ConfigError(f"{where}: {name} is not available: {refused[name]}")
    if name not in known:
        raise ConfigError(f"{where}: unknown type {name!r}{nearest(name, known)}")
    rest = {key: item for key, item in value.items() if key != "type"}
    try:
        return known[name].from_mapping(rest)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_learning_rate(value: object, where: str) -> LearningRate:
    """A learning rate as it is written: a number >= 0, or {type: <name in paddle.optimizer.lr>, its arguments}."""
    if isinstance(value, LearningRateSchedule):
        return value
    if isinstance(value, Mapping):
        schedule = read_typed(value, SCHEDULES, REFUSED_SCHEDULES, where)
        assert isinstance(schedule, LearningRateSchedule)
        return schedule
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ConfigError(f"{where}: {value!r} is neither a number >= 0 nor a mapping with 'type'")
    return float(value)


def _increasing(values: tuple[int, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
