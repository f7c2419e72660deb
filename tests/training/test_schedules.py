"""Schedules against paddle.optimizer.lr itself, step by step, and beyond their ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.config.learning_rate import SCHEDULES, read_learning_rate
from fullquant.errors import ConfigError
from fullquant.training.schedules import build_schedule

STEPS = 60

CASES: list[tuple[str, dict[str, Any]]] = [
    ("NoamDecay", {"d_model": 100, "warmup_steps": 10, "learning_rate": 0.5}),
    ("PiecewiseDecay", {"boundaries": [3, 20], "values": [0.1, 0.05, 0.001]}),
    ("NaturalExpDecay", {"learning_rate": 0.5, "gamma": 0.1}),
    ("InverseTimeDecay", {"learning_rate": 0.5, "gamma": 0.1}),
    ("PolynomialDecay", {"learning_rate": 0.5, "decay_steps": 20, "power": 2.0}),
    ("PolynomialDecay", {"learning_rate": 0.5, "decay_steps": 20, "end_lr": 0.01, "cycle": True}),
    ("ExponentialDecay", {"learning_rate": 0.5, "gamma": 0.9}),
    ("MultiStepDecay", {"learning_rate": 0.5, "milestones": [5, 17, 18]}),
    ("StepDecay", {"learning_rate": 0.5, "step_size": 7, "gamma": 0.3}),
    ("CosineAnnealingDecay", {"learning_rate": 0.015, "T_max": 17}),
    ("CosineAnnealingDecay", {"learning_rate": 0.015, "T_max": 10, "eta_min": 0.001}),
    ("CosineAnnealingWarmRestarts", {"learning_rate": 0.5, "T_0": 7}),
    ("CosineAnnealingWarmRestarts", {"learning_rate": 0.5, "T_0": 3, "T_mult": 2, "eta_min": 0.1}),
    ("OneCycleLR", {"max_learning_rate": 1.0, "total_steps": STEPS}),
    ("OneCycleLR", {"max_learning_rate": 1.0, "total_steps": STEPS, "three_phase": True, "phase_pct": 0.33}),
    ("OneCycleLR", {"max_learning_rate": 1.0, "total_steps": STEPS, "anneal_strategy": "linear", "divide_factor": 4}),
    ("CyclicLR", {"base_learning_rate": 0.1, "max_learning_rate": 1.0, "step_size_up": 4}),
    (
        "CyclicLR",
        {
            "base_learning_rate": 0.1,
            "max_learning_rate": 1.0,
            "step_size_up": 4,
            "step_size_down": 9,
            "mode": "triangular2",
        },
    ),
    (
        "CyclicLR",
        {
            "base_learning_rate": 0.1,
            "max_learning_rate": 1.0,
            "step_size_up": 5,
            "mode": "exp_range",
            "exp_gamma": 0.97,
        },
    ),
    ("LinearLR", {"learning_rate": 0.5, "total_steps": 20}),
    ("LinearLR", {"learning_rate": 0.5, "total_steps": 20, "start_factor": 1.0, "end_factor": 0.25}),
    ("LinearWarmup", {"learning_rate": 0.5, "warmup_steps": 10, "start_lr": 0.0, "end_lr": 0.5}),
]


def _paddle_rates(name: str, arguments: dict[str, Any], steps: int = STEPS) -> list[float]:
    lr = pytest.importorskip("paddle").optimizer.lr
    inner = arguments.get("learning_rate")
    if isinstance(inner, dict):
        rest = {key: value for key, value in inner.items() if key != "type"}
        arguments = {**arguments, "learning_rate": getattr(lr, inner["type"])(**rest)}
    scheduler = getattr(lr, name)(**arguments)
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler()))
        scheduler.step()
    return rates


def _our_rates(name: str, arguments: dict[str, Any], steps: int = STEPS) -> list[float]:
    schedule = build_schedule(read_learning_rate({"type": name, **arguments}, "TrainConfig.learning_rate"))
    return [schedule.lr_at(step) for step in range(steps)]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_equals_paddle(name: str, arguments: dict[str, Any]) -> None:
    assert _our_rates(name, arguments) == pytest.approx(_paddle_rates(name, arguments), rel=1e-6, abs=1e-12)


def test_every_schedule_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "CosineAnnealingDecay", "learning_rate": 0.5, "T_max": 20},
        {"type": "PiecewiseDecay", "boundaries": [5], "values": [0.5, 0.1]},
        {"type": "StepDecay", "learning_rate": 0.5, "step_size": 6},
        {"type": "CosineAnnealingWarmRestarts", "learning_rate": 0.5, "T_0": 4, "T_mult": 2},
    ],
)
def test_warmup_wraps_a_schedule(inner: dict[str, Any]) -> None:
    arguments = {"learning_rate": inner, "warmup_steps": 10, "start_lr": 0.01, "end_lr": 0.5}
    assert _our_rates("LinearWarmup", arguments) == pytest.approx(
        _paddle_rates("LinearWarmup", arguments), rel=1e-6, abs=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(t_max=st.integers(1, 40), eta_min=st.floats(0, 0.1), rate=st.floats(0.001, 1))
def test_cosine_equals_paddles_recursion_beyond_t_max(t_max: int, eta_min: float, rate: float) -> None:
    arguments = {"learning_rate": rate, "T_max": t_max, "eta_min": eta_min}
    ours = _our_rates("CosineAnnealingDecay", arguments, 3 * t_max + 5)
    theirs = _paddle_rates("CosineAnnealingDecay", arguments, 3 * t_max + 5)
    # The recursion divides by nearly zero around T_max and keeps the rounding; hence the absolute part.
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@given(t_0=st.integers(1, 9), t_mult=st.integers(1, 3), step=st.integers(0, 500))
def test_restarts_begin_at_the_full_rate(t_0: int, t_mult: int, step: int) -> None:
    read = {"type": "CosineAnnealingWarmRestarts", "learning_rate": 1.0, "T_0": t_0, "T_mult": t_mult}
    schedule = build_schedule(read_learning_rate(read, "x"))
    assert 0 <= schedule.lr_at(step) <= 1
    assert schedule.lr_at(0) == schedule.lr_at(t_0) == schedule.lr_at(t_0 + t_0 * t_mult) == 1.0


def test_number_and_factor() -> None:
    assert build_schedule(0.02).lr_at(10**6) == 0.02
    read = read_learning_rate({"type": "StepDecay", "learning_rate": 0.4, "step_size": 5}, "x")
    assert build_schedule(read, factor=0.25).lr_at(7) == pytest.approx(0.01)


def test_comparison_can_fail() -> None:
    """The comparison sees a schedule that is one step late."""
    arguments = {"learning_rate": 0.015, "T_max": 17}
    late = _paddle_rates("CosineAnnealingDecay", arguments, STEPS + 1)[1:]
    assert _our_rates("CosineAnnealingDecay", arguments) != pytest.approx(late, rel=1e-6, abs=1e-12)


def test_t_max_is_filled_in() -> None:
    read = read_learning_rate({"type": "CosineAnnealingDecay", "learning_rate": 0.015}, "x")
    with pytest.raises(ConfigError, match=r"CosineAnnealingDecay\.T_max must be given"):
        build_schedule(read)
    schedule = build_schedule(read, total_steps=100)
    assert schedule.lr_at(0) == 0.015
    assert schedule.lr_at(50) == pytest.approx(0.0075)
    assert schedule.lr_at(100) == pytest.approx(0.0)
    warm = {"type": "LinearWarmup", "warmup_steps": 20, "start_lr": 0.0, "end_lr": 0.015}
    wrapped = read_learning_rate(
        {**warm, "learning_rate": {"type": "CosineAnnealingDecay", "learning_rate": 0.015}}, "x"
    )
    assert build_schedule(wrapped, total_steps=100).lr_at(100) == pytest.approx(0.0)


def test_one_cycle_must_cover_the_run() -> None:
    read = read_learning_rate({"type": "OneCycleLR", "max_learning_rate": 1.0, "total_steps": 50}, "x")
    with pytest.raises(ConfigError, match=r"ends before the run's 60 iterations; set it to 60"):
        build_schedule(read, total_steps=60)
    with pytest.raises(ConfigError, match="step 51 is beyond the 50"):
        build_schedule(read, total_steps=50).lr_at(51)


def test_negative_step() -> None:
    with pytest.raises(ValueError, match="step -1"):
        build_schedule(0.1).lr_at(-1)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"type": "CosineAnealingDecay", "learning_rate": 0.1}, "did you mean 'CosineAnnealingDecay'"),
        (
            {"type": "CosineAnnealingDecay", "learning_rate": 0.1, "T_maximum": 3},
            "unknown key 'T_maximum'; did you mean 'T_max'",
        ),
        ({"type": "StepDecay", "learning_rate": 0.1}, "StepDecay: step_size must be given"),
        ({"learning_rate": 0.1}, "'type' is missing"),
        ({"type": "LambdaDecay", "learning_rate": 0.1}, "cannot be written in YAML"),
        ({"type": "ReduceOnPlateau", "learning_rate": 0.1}, "ReduceOnPlateau is not available"),
        (
            {"type": "StepDecay", "learning_rate": 0.1, "step_size": 3, "verbose": True},
            "StepDecay.verbose: true is not",
        ),
        (
            {"type": "StepDecay", "learning_rate": "fast", "step_size": 3},
            "StepDecay.learning_rate: 'fast' is not a number",
        ),
        ({"type": "StepDecay", "learning_rate": 0.1, "step_size": 1.5}, "StepDecay.step_size: 1.5 is not an integer"),
        ({"type": "StepDecay", "learning_rate": 0.1, "step_size": 3, "gamma": 1.5}, "StepDecay.gamma: 1.5 must be"),
        ({"type": "PiecewiseDecay", "boundaries": [5], "values": [0.1]}, "one longer than boundaries"),
        ({"type": "PiecewiseDecay", "boundaries": [5, 5], "values": [1, 2, 3]}, "increasing"),
        (
            {"type": "LinearWarmup", "learning_rate": 1, "warmup_steps": 3, "start_lr": 1, "end_lr": 0.5},
            "above start_lr",
        ),
        ({"type": "OneCycleLR", "max_learning_rate": 1.0, "total_steps": 3}, "so large that phase_pct of it is over 1"),
        (-0.1, "neither a number >= 0 nor a mapping"),
        (True, "neither a number >= 0 nor a mapping"),
        ("0.1", "neither a number >= 0 nor a mapping"),
    ],
)
def test_mistakes(written: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_learning_rate(written, "TrainConfig.learning_rate")
    assert message in str(caught.value)
    assert str(caught.value).startswith("TrainConfig.learning_rate: ")
