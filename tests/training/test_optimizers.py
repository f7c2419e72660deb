"""Optimizers, clips and decays against paddle.optimizer in dynamic graph mode, update by update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fullquant.config.optimizer import OPTIMIZERS, OptimizerBuilder
from fullquant.errors import ConfigError
from fullquant.training.optimizers import build_optimizer, clip_gradients, set_lr

torch.set_num_threads(1)
STEPS = 20
RATES = [0.05 / (1 + step % 7) for step in range(STEPS)]  # the rate changes: rules differ in where it enters

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("Momentum", {}),
    ("Momentum", {"momentum": 0.8, "use_nesterov": True}),
    ("Adam", {}),
    ("Adam", {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.01}),
    ("Adam", {"beta2": 0.5, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"epsilon": 0.01, "beta2": 0.5, "amsgrad": True}),
    ("Adamax", {}),
    ("Adamax", {"beta1": 0.8, "beta2": 0.5, "epsilon": 0.1}),
    ("NAdam", {}),
    ("NAdam", {"momentum_decay": 0.1, "epsilon": 0.01}),
    ("RAdam", {}),
    ("RAdam", {"beta2": 0.9, "epsilon": 0.01}),
    ("Adagrad", {}),
    ("Adagrad", {"epsilon": 0.1, "initial_accumulator_value": 0.3}),
    ("Adadelta", {}),
    ("Adadelta", {"rho": 0.8, "epsilon": 0.01}),
    ("RMSProp", {}),
    ("RMSProp", {"rho": 0.8, "epsilon": 0.01, "momentum": 0.9}),
    ("RMSProp", {"rho": 0.8, "epsilon": 0.01, "momentum": 0.9, "centered": True}),
    ("Lamb", {}),
    ("Lamb", {"lamb_weight_decay": 0.1, "beta2": 0.9, "epsilon": 0.01}),
    ("Lamb", {"lamb_weight_decay": 0.0}),
    ("Lamb", {"lamb_weight_decay": 0.0, "always_adapt": True}),
    ("ASGD", {}),
    ("ASGD", {"batch_num": 3}),
]


def _start() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape).astype(np.float32) for shape in [(4, 3), (4,), (1,)]]


def _gradients(step: int) -> list[np.ndarray]:
    """Gradients of changing size, the same for both sides whatever the parameters are."""
    rng = np.random.default_rng(100 + step)
    size = 10.0 ** (step % 4 - 2)
    return [(size * rng.normal(size=shape)).astype(np.float32) for shape in [(4, 3), (4,), (1,)]]


def _paddle_run(written: Mapping[str, Any]) -> list[np.ndarray]:
    paddle = pytest.importorskip("paddle")
    paddle.disable_static()
    parameters = [paddle.create_parameter(list(a.shape), "float32") for a in _start()]
    for parameter, value in zip(parameters, _start(), strict=True):
        parameter.set_value(value)
    arguments = {key: value for key, value in written["optimizer"].items() if key != "type"}
    name = written["optimizer"]["type"]
    for key, home in (("grad_clip", paddle.nn), ("regularizer", paddle.regularizer)):
        if key in written:
            rest = {k: v for k, v in written[key].items() if k != "type"}
            made = getattr(home, written[key]["type"])(**rest)
            arguments["weight_decay" if key == "regularizer" else key] = made
    if "weight_decay" in written:
        arguments["weight_decay"] = written["weight_decay"]
    optimizer = getattr(paddle.optimizer, name)(learning_rate=RATES[0], parameters=parameters, **arguments)
    for step, rate in enumerate(RATES):
        optimizer.set_lr(rate)
        # A loss whose gradients are the ones wanted: sum(p * g).
        loss = sum((p * paddle.to_tensor(g)).sum() for p, g in zip(parameters, _gradients(step), strict=True))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return [p.numpy() for p in parameters]


def _our_run(written: Mapping[str, Any]) -> list[np.ndarray]:
    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for a in _start()]
    optimizer = build_optimizer(OptimizerBuilder.from_mapping(written), parameters)
    for step, rate in enumerate(RATES):
        set_lr(optimizer, rate)
        for p, g in zip(parameters, _gradients(step), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().numpy() for p in parameters]


def _assert_same(written: Mapping[str, Any]) -> None:
    for ours, theirs in zip(_our_run(written), _paddle_run(written), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_equals_paddle(name: str, arguments: dict[str, Any]) -> None:
    _assert_same({"optimizer": {"type": name, **arguments}})


def test_every_optimizer_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"Lamb"}))
def test_weight_decay_equals_paddle(name: str) -> None:
    _assert_same({"optimizer": {"type": name}, "weight_decay": 0.1})


@pytest.mark.parametrize("regularizer", ["L1Decay", "L2Decay"])
@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "RMSProp"])
def test_regularizer_equals_paddle(name: str, regularizer: str) -> None:
    _assert_same({"optimizer": {"type": name}, "regularizer": {"type": regularizer, "coeff": 0.1}})


@pytest.mark.parametrize(
    "clip",
    [
        {"type": "ClipGradByGlobalNorm", "clip_norm": 0.5},
        {"type": "ClipGradByNorm", "clip_norm": 0.5},
        {"type": "ClipGradByValue", "max": 0.2},
        {"type": "ClipGradByValue", "max": 0.2, "min": -0.1},
    ],
)
@pytest.mark.parametrize("name", ["SGD", "Momentum", "Lamb"])
def test_clip_equals_paddle(name: str, clip: dict[str, Any]) -> None:
    _assert_same({"optimizer": {"type": name}, "grad_clip": clip})


def test_clip_comes_before_decay() -> None:
    _assert_same(
        {
            "optimizer": {"type": "Momentum"},
            "weight_decay": 0.5,
            "grad_clip": {"type": "ClipGradByGlobalNorm", "clip_norm": 0.1},
        }
    )


def test_comparison_can_fail() -> None:
    """torch's own RMSprop, with epsilon outside the root, is told apart from Paddle's."""
    written = {"optimizer": {"type": "RMSProp", "rho": 0.8, "epsilon": 0.01}}
    theirs = _paddle_run(written)
    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for a in _start()]
    optimizer = torch.optim.RMSprop(parameters, RATES[0], alpha=0.8, eps=0.01)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        for p, g in zip(parameters, _gradients(step), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(parameters[0].detach().numpy(), theirs[0], rtol=2e-5, atol=2e-6)


def test_groups_scale_the_rate_and_switch_decay_off() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    builder = OptimizerBuilder.from_mapping({"optimizer": {"type": "SGD"}, "weight_decay": 0.5})
    optimizer = build_optimizer(builder, [{"params": [a]}, {"params": [b], "lr_scale": 0.1, "weight_decay": 0}])
    set_lr(optimizer, 0.2)
    for p in (a, b):
        p.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((2,), 1 - 0.2 * 1.5))
    torch.testing.assert_close(b.detach(), torch.full((2,), 1 - 0.02))


@pytest.mark.parametrize("regularizer", ["L1Decay", "L2Decay"])
def test_group_without_decay_whatever_the_regularizer(regularizer: str) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    written = {"optimizer": {"type": "SGD"}, "regularizer": {"type": regularizer, "coeff": 0.5}}
    optimizer = build_optimizer(OptimizerBuilder.from_mapping(written), [{"params": [p], "weight_decay": 0}])
    p.grad = torch.zeros(2)
    set_lr(optimizer, 1.0)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.ones(2))


def test_unknown_group_key() -> None:
    with pytest.raises(ValueError, match="unknown keys \\['lr'\\]"):
        build_optimizer(OptimizerBuilder(), [{"params": [torch.ones(1)], "lr": 0.1}])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_survives_a_checkpoint(name: str) -> None:
    """Ten steps, then ten more after state_dict and load_state_dict, equal twenty."""
    builder = OptimizerBuilder.from_mapping({"optimizer": {"type": name}})
    straight = _our_run({"optimizer": {"type": name}})
    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for a in _start()]
    optimizer = build_optimizer(builder, parameters)
    for step, rate in enumerate(RATES):
        if step == 10:
            saved = optimizer.state_dict()
            parameters = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
            optimizer = build_optimizer(builder, parameters)
            optimizer.load_state_dict(saved)
        set_lr(optimizer, rate)
        for p, g in zip(parameters, _gradients(step), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
    for ours, expected in zip(parameters, straight, strict=True):
        np.testing.assert_array_equal(ours.detach().numpy(), expected)


def test_parameters_without_gradient_stay() -> None:
    for name in OPTIMIZERS:
        p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        clip = {"type": "ClipGradByGlobalNorm", "clip_norm": 1.0}
        optimizer = build_optimizer(
            OptimizerBuilder.from_mapping({"optimizer": {"type": name}, "grad_clip": clip}), [p, q]
        )
        p.grad = torch.ones(2)
        optimizer.step()
        assert torch.equal(q, torch.ones(2))
        assert not torch.equal(p, torch.ones(2))
    clip_gradients(OptimizerBuilder.from_mapping({"grad_clip": clip}).grad_clip, [None])  # type: ignore[arg-type]


def test_closure_is_evaluated() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimizerBuilder.from_mapping({"optimizer": {"type": "Lamb"}}), [p])

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert bool((p < 1).all())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"optimizer": {"type": "Momentun"}}, "unknown type 'Momentun'; did you mean 'Momentum'"),
        ({"optimizer": {"momentum": 0.9}}, "'type' is missing"),
        ({"optimizer": "SGD"}, "'SGD' is not a mapping with 'type'"),
        ({"optimizer": {"type": "LBFGS"}}, "LBFGS is not available"),
        ({"optimizer": {"type": "Momentum", "nesterov": True}}, "did you mean 'use_nesterov'"),
        ({"optimizer": {"type": "Momentum", "rescale_grad": 0.5}}, "Momentum.rescale_grad: 0.5 is not available"),
        ({"optimizer": {"type": "Adam", "lazy_mode": True}}, "Adam.lazy_mode: true is not available"),
        ({"optimizer": {"type": "Adam", "beta1": 1.0}}, "Adam.beta1: 1.0 must be at least 0 and below 1"),
        ({"optimizer": {"type": "Lamb"}, "weight_decay": 0.1}, "Lamb uses lamb_weight_decay"),
        ({"optimizer": {"type": "AdamW"}, "regularizer": {"type": "L1Decay"}}, "AdamW has a decay of its own"),
        ({"weight_decay": 0.1, "regularizer": {"type": "L1Decay", "coeff": 1}}, "keep one"),
        ({"weight_decay": -0.1}, "must be >= 0"),
        ({"grad_clip": {"type": "ClipGradByNorm", "clip_norm": 0}}, "clip_norm: 0.0 must be > 0"),
        ({"grad_clip": {"type": "ClipGradByValue", "max": 1, "min": 2}}, "must be below max"),
        ({"grad_clip": 1.0}, "is not a mapping with 'type'"),
        ({"weigth_decay": 0.1}, "did you mean 'weight_decay'"),
    ],
)
def test_mistakes(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OptimizerBuilder.from_mapping(written)
    assert message in str(caught.value)


def test_adamw_has_paddles_default_decay() -> None:
    assert OptimizerBuilder.from_mapping({"optimizer": {"type": "AdamW"}}).l2_decay == 0.01
    assert OptimizerBuilder.from_mapping({"optimizer": {"type": "AdamW"}, "weight_decay": 0}).l2_decay == 0.0
    assert OptimizerBuilder.from_mapping({}).l2_decay == 0.0
