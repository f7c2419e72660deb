"""Learning-rate schedules as functions of the step alone, equal to paddle.optimizer.lr step by step.

Paddle's schedulers keep a state and advance by `step()`; PaddleSlim calls that once per training iteration. Here the
rate of an iteration is computed from its number, so a run that is resumed goes on with the same rates, and nothing has
to be stored for it.
Formulas: PaddlePaddle 3.3, python/paddle/optimizer/lr.py, in closed form.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from functools import singledispatch

from fullquant.config.learning_rate import (
    CosineAnnealingDecay,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRate,
    LinearLR,
    LinearWarmup,
    MultiStepDecay,
    NaturalExpDecay,
    NoamDecay,
    OneCycleLR,
    PiecewiseDecay,
    PolynomialDecay,
    StepDecay,
)
from fullquant.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """learning_rate: a number or a schedule's parameters. factor: multiplies every rate (linear batch-size rule)."""

    learning_rate: LearningRate
    factor: float = 1.0

    def lr_at(self, step: int) -> float:
        """The rate of iteration `step`, the first being 0: factor * schedule(step). ValueError for a negative step."""
        if step < 0:
            raise ValueError(f"step {step} must be >= 0")
        return self.factor * _rate(self.learning_rate, step)


def build_schedule(learning_rate: LearningRate, total_steps: int | None = None, factor: float = 1.0) -> Schedule:
    """The schedule of TrainConfig.learning_rate.

    total_steps: the iterations that a CosineAnnealingDecay without T_max spans, and that a OneCycleLR must cover.
    Raises ConfigError where T_max is absent and total_steps too, and where a OneCycleLR is too short for the run.
    """
    return Schedule(_completed(learning_rate, total_steps), factor)


def _completed(learning_rate: LearningRate, total_steps: int | None) -> LearningRate:
    if isinstance(learning_rate, LinearWarmup):
        rest = None if total_steps is None else max(total_steps - learning_rate.warmup_steps, 1)
        return replace(learning_rate, learning_rate=_completed(learning_rate.learning_rate, rest))
    if isinstance(learning_rate, CosineAnnealingDecay) and learning_rate.T_max is None:
        if total_steps is None:
            raise ConfigError(
                "TrainConfig.learning_rate: CosineAnnealingDecay.T_max must be given (the steps of the run)"
            )
        return replace(learning_rate, T_max=total_steps)
    if (
        isinstance(learning_rate, OneCycleLR)
        and total_steps is not None
        and learning_rate.total_steps < total_steps - 1
    ):
        raise ConfigError(
            f"TrainConfig.learning_rate: OneCycleLR.total_steps {learning_rate.total_steps} ends before the run's "
            f"{total_steps} iterations; set it to {total_steps}"
        )
    return learning_rate


@singledispatch
def _rate(learning_rate: LearningRate, step: int) -> float:
    """The rate at `step`; one registered function per schedule."""
    raise TypeError(f"no rate for {learning_rate!r}")


@_rate.register
def _constant(learning_rate: float, step: int) -> float:
    return learning_rate


@_rate.register
def _noam(p: NoamDecay, step: int) -> float:
    growing = p.warmup_steps**-1.5 * step
    falling = 1.0 if step == 0 else step**-0.5
    return float(p.learning_rate * p.d_model**-0.5 * min(falling, growing))


@_rate.register
def _piecewise(p: PiecewiseDecay, step: int) -> float:
    return p.values[bisect.bisect_right(p.boundaries, step)]


@_rate.register
def _natural_exp(p: NaturalExpDecay, step: int) -> float:
    return p.learning_rate * math.exp(-p.gamma * step)


@_rate.register
def _inverse_time(p: InverseTimeDecay, step: int) -> float:
    return p.learning_rate / (1 + p.gamma * step)


@_rate.register
def _polynomial(p: PolynomialDecay, step: int) -> float:
    if p.cycle:
        done = step / (p.decay_steps * max(math.ceil(step / p.decay_steps), 1))
    else:
        done = min(step, p.decay_steps) / p.decay_steps
    return float((p.learning_rate - p.end_lr) * (1 - done) ** p.power + p.end_lr)


@_rate.register
def _exponential(p: ExponentialDecay, step: int) -> float:
    return float(p.learning_rate * p.gamma**step)


@_rate.register
def _multi_step(p: MultiStepDecay, step: int) -> float:
    return float(p.learning_rate * p.gamma ** bisect.bisect_right(p.milestones, step))


@_rate.register
def _step(p: StepDecay, step: int) -> float:
    return float(p.learning_rate * p.gamma ** (step // p.step_size))


def _cosine_between(high: float, low: float, share: float) -> float:
    """high at share 0, low at share 1, half a cosine between."""
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


@_rate.register
def _cosine(p: CosineAnnealingDecay, step: int) -> float:
    assert p.T_max is not None  # filled in by build_schedule
    return _cosine_between(p.learning_rate, p.eta_min, step / p.T_max)


@_rate.register
def _warm_restarts(p: CosineAnnealingWarmRestarts, step: int) -> float:
    length = p.T_0
    if p.T_mult == 1:
        step %= length
    while step >= length:
        step -= length
        length *= p.T_mult
    return _cosine_between(p.learning_rate, p.eta_min, step / length)


@_rate.register
def _one_cycle(p: OneCycleLR, step: int) -> float:
    """A phase may end between two steps, as in Paddle; the last phase runs one step over its end, total_steps - 1."""
    if step > p.total_steps:
        raise ConfigError(f"OneCycleLR.total_steps: step {step} is beyond the {p.total_steps} of the schedule")
    start, peak = p.max_learning_rate / p.divide_factor, p.max_learning_rate
    up = p.phase_pct * p.total_steps - 1
    ends: tuple[float, ...]
    rates: tuple[float, ...]
    if p.three_phase:
        ends = (0.0, up, 2 * p.phase_pct * p.total_steps - 2, p.total_steps - 1.0)
        rates = (start, peak, start, p.end_learning_rate)
    else:
        ends = (0.0, up, p.total_steps - 1.0)
        rates = (start, peak, p.end_learning_rate)
    phase = min(bisect.bisect_left(ends, step, lo=1), len(ends) - 1)
    share = (step - ends[phase - 1]) / (ends[phase] - ends[phase - 1])
    if p.anneal_strategy == "cos":
        return _cosine_between(rates[phase - 1], rates[phase], share)
    return rates[phase - 1] + (rates[phase] - rates[phase - 1]) * share


@_rate.register
def _cyclic(p: CyclicLR, step: int) -> float:
    up = float(p.step_size_up)
    length = up + (p.step_size_up if p.step_size_down is None else p.step_size_down)
    cycle = 1 + step // length
    share = 1.0 + step / length - cycle
    height = share * length / up if share <= up / length else (1 - share) / (1 - up / length)
    scale = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": p.exp_gamma**step}[p.mode]
    return float(p.base_learning_rate + (p.max_learning_rate - p.base_learning_rate) * height * scale)


@_rate.register
def _linear(p: LinearLR, step: int) -> float:
    share = min(step, p.total_steps) / p.total_steps
    return p.learning_rate * (p.start_factor + (p.end_factor - p.start_factor) * share)


@_rate.register
def _warmup(p: LinearWarmup, step: int) -> float:
    if step < p.warmup_steps:
        return (p.end_lr - p.start_lr) * step / p.warmup_steps + p.start_lr
    return _rate(p.learning_rate, step - p.warmup_steps)
