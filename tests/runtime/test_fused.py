"""Fused steps give the bits of the separate ones, and the gradients of differentiable torch operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.numerics.qparams import ACTIVATION_MANTISSAS, QuantSpec, symmetric
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.fake_quantize import FakeQuantize, reference_fake_quantize
from fullquant.runtime.fused import FusedGate, FusedHardSwish, FusedSum
from fullquant.runtime.steps import QUANTIZE
from tests.calibrating import min_max_qparams
from tests.graphs import graph, small_classifier

SCALES = st.floats(2e-3, 0.5)
MANTISSAS = st.sampled_from([(), ACTIVATION_MANTISSAS])
Unary = Callable[..., torch.Tensor]


def _quantizer(scale: float, mantissas: tuple[float, ...] = (), low: float = -math.inf, high: float = math.inf):
    return FakeQuantize(symmetric(QuantSpec(-128, 127, mantissas=mantissas), scale), low=low, high=high)


def _image(seed: int, *shape: int, spread: float = 4.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)
    return torch.from_numpy(values).contiguous(memory_format=torch.channels_last)


@given(SCALES, SCALES, MANTISSAS)
@settings(max_examples=60, deadline=None)
def test_hard_swish_has_the_bits_of_three_steps(first: float, second: float, mantissas: tuple[float, ...]) -> None:
    before, after = _quantizer(first, mantissas), _quantizer(second, mantissas)
    every_step = torch.arange(-140, 141) * before.step() + 0.3 * before.step() * torch.randn(281)
    x = torch.cat(
        [every_step, torch.arange(-128, 128) * before.step(), (torch.arange(-128, 128) + 0.5) * before.step()]
    )
    assert torch.equal(FusedHardSwish(before, after)(x), after(F.hardswish(before(x))))


@given(SCALES, MANTISSAS, st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)]))
@settings(max_examples=30, deadline=None)
def test_sums_have_the_bits_of_two_steps(
    scale: float, mantissas: tuple[float, ...], bounds: tuple[float, float]
) -> None:
    quantizer = _quantizer(scale, mantissas, *bounds)
    p, r = _image(0, 2, 5, 7, 3), _image(1, 2, 5, 7, 3)
    assert torch.equal(FusedSum(quantizer)(p, r), quantizer(p + r))


@given(SCALES, MANTISSAS)
@settings(max_examples=30, deadline=None)
def test_gates_have_the_bits_of_two_steps(scale: float, mantissas: tuple[float, ...]) -> None:
    quantizer = _quantizer(scale, mantissas)
    x, s = _image(0, 3, 19, 7, 3), _image(1, 3, 19, 1, 1, spread=1.0)
    assert torch.equal(FusedGate(quantizer)(x, s), quantizer(x * s))
    assert torch.equal(FusedGate(quantizer)(s, x), quantizer(x * s))


def _gradients(function: Unary, *tensors: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    y = function(*leaves)
    weight = torch.from_numpy(np.random.default_rng(9).normal(0, 1, y.shape).astype(np.float32))
    (y * weight).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def _close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=5e-4, atol=5e-3)


@pytest.mark.parametrize("scales", [(0.01, 0.02), (0.05, 0.03), (0.3, 0.2)])
@pytest.mark.parametrize("clip", [False, True])
def test_gradients_of_hard_swish(scales: tuple[float, float], clip: bool) -> None:
    before, after = _quantizer(scales[0]), _quantizer(scales[1])
    before.clip_only = after.clip_only = clip
    fused = FusedHardSwish(before, after)

    def ours(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        before.log_scale, after.log_scale = torch.nn.Parameter(a), torch.nn.Parameter(b)
        y = fused(x)
        return y + 0 * (a + b)

    def theirs(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        u = reference_fake_quantize(x, a, -128, 127, clip_only=clip)
        return reference_fake_quantize(F.hardswish(u), b, -128, 127, clip_only=clip)

    x, logs = _image(3, 2, 8, 9, 5), [torch.tensor(math.log(s)) for s in scales]
    want = _gradients(theirs, x, *logs)
    got = _gradients(ours, x, *logs)
    got = [got[0], before.log_scale.grad, after.log_scale.grad]  # type: ignore[list-item]
    _close(got, want)


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.3])
def test_gradients_of_sums_and_gates(scale: float) -> None:
    quantizer, log = _quantizer(scale), torch.tensor(math.log(scale))
    for fused, plain, second in (
        (FusedSum(quantizer), torch.add, _image(5, 2, 8, 9, 5)),
        (FusedGate(quantizer), torch.mul, _image(5, 2, 8, 1, 1, spread=1.0)),
    ):
        quantizer.log_scale.grad = None
        x = _image(4, 2, 8, 9, 5)
        want = _gradients(lambda a, b, s, f=plain: reference_fake_quantize(f(a, b), s, -128, 127), x, second, log)
        got = _gradients(fused, x, second)
        assert quantizer.log_scale.grad is not None
        _close([*got, quantizer.log_scale.grad], want)


def test_nan_passes_through_the_fused_kernels() -> None:
    x = torch.full((1, 2, 2, 2), math.nan).contiguous(memory_format=torch.channels_last)
    quantizer = _quantizer(0.1)
    for y in (
        FusedHardSwish(quantizer, quantizer)(x),
        FusedSum(quantizer)(x, x),
        FusedGate(quantizer)(x, x[:, :, :1, :1]),
    ):
        assert bool(torch.isnan(y).all())


def test_what_the_kernels_do_not_take_runs_as_separate_steps() -> None:
    quantizer = _quantizer(0.05)
    x, row = _image(0, 2, 4, 5, 6), torch.randn(4, 1, 1)
    assert torch.equal(FusedSum(quantizer)(x, row), quantizer(x + row))
    assert torch.equal(FusedSum(quantizer)(x, x.contiguous()), quantizer(x + x))
    assert torch.equal(FusedGate(quantizer)(x, x), quantizer(x * x))
    double = x.double()
    assert FusedHardSwish(quantizer, quantizer)(double).dtype == torch.float64


# ---- in the executor -------------------------------------------------------------------------------------------------


def _student(model: ir.Model) -> GraphModule:
    placement = place(model, "paddle_lite", PlacementOptions())
    x = np.random.default_rng(2).normal(0, 1, (8, 3, 8, 8)).astype(np.float32)
    qparams = min_max_qparams(GraphModule(model), model, placement, [x])
    for decision in placement:
        if decision.kind == "weight" and decision.spec is not None:
            weight = model.graph.initializers[decision.tensor].const_value.numpy()  # type: ignore[union-attr]
            axes = tuple(a for a in range(weight.ndim) if a != decision.spec.axis)
            qparams[decision.tensor] = symmetric(decision.spec, np.abs(weight).max(axis=axes) / 127 + 1e-6)
    return GraphModule(model, placement=placement, qparams=qparams)


def _mobile() -> ir.Model:
    """Conv, HardSwish, squeeze-and-excitation, residual sum, ReLU: one of each that is fused."""
    rng = np.random.default_rng(7)
    constants = {
        name: rng.normal(0, 0.4, shape).astype(np.float32)
        for name, shape in {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "b2": (8,), "w3": (8, 8, 1, 1)}.items()
    }
    nodes = [
        ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
        ("HardSwish", ["c1"], ["h1"], {}),
        ("GlobalAveragePool", ["h1"], ["p1"], {}),
        ("Conv", ["p1", "w2", "b2"], ["c2"], {}),
        ("HardSigmoid", ["c2"], ["g"], {"alpha": 1 / 6, "beta": 0.5}),
        ("Mul", ["h1", "g"], ["m"], {}),
        ("Conv", ["m", "w3"], ["c3"], {}),
        ("Add", ["c3", "h1"], ["a"], {}),
        ("Relu", ["a"], ["r"], {}),
        ("GlobalAveragePool", ["r"], ["y"], {}),
    ]
    return graph(nodes, constants)


def _kinds(module: GraphModule) -> list[str]:
    return [step.kind for step in module._fused]


@pytest.mark.parametrize("make", [_mobile, small_classifier])
def test_a_student_fuses_and_computes_the_same(make: Callable[[], ir.Model]) -> None:
    student = _student(make())
    assert {"FusedAdd", "FusedMul"} <= set(_kinds(student))
    assert ("FusedHardSwish" in _kinds(student)) == (make is _mobile)
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (4, 3, 8, 8)).astype(np.float32))
    fused = student(x)
    whole = student(x, tap=lambda name, tensor: None)
    assert torch.equal(fused, whole)


def test_a_hidden_tensor_is_there_for_who_asks() -> None:
    student = _student(_mobile())
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (4, 3, 8, 8)).astype(np.float32))
    assert student._slots["c1"] in student._hidden
    output, kept = student(x, keep=["c1"])
    assert kept["c1"].shape == (4, 8, 8, 8)
    assert torch.equal(output, student(x))


def test_a_tensor_with_a_second_reader_is_not_hidden() -> None:
    w = np.random.default_rng(0).normal(0, 0.4, (3, 3, 1, 1)).astype(np.float32)
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("HardSwish", ["c"], ["h"], {}),
        ("Add", ["h", "c"], ["y"], {}),
    ]
    student = _student(graph(nodes, {"w": w}, output="y"))
    assert "FusedHardSwish" not in _kinds(student)
    assert _kinds(student)[-1] == "FusedAdd"


def test_gradients_of_a_student_are_those_of_the_separate_steps() -> None:
    model = _mobile()
    x = torch.from_numpy(np.random.default_rng(4).normal(0, 1, (4, 3, 8, 8)).astype(np.float32))
    found = []
    for whole in (False, True):
        student = _student(model)
        if whole:
            student._fused, student._hidden = student._steps, frozenset()
            assert QUANTIZE in _kinds(student)
        student(x).square().sum().backward()
        found.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-4)
