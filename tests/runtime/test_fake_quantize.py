"""The kernels against the NumPy reference and against differentiable torch operators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.runtime import kernels
from fullquant.runtime.fake_quantize import (
    FakeQuantize,
    fake_quantize_channels,
    fake_quantize_tensor,
    like,
    reference_fake_quantize,
)

INT8 = QuantSpec(-128, 127)
FLOATS = st.floats(-1e4, 1e4, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), elements=FLOATS), st.floats(1e-3, 10)
)
@settings(max_examples=60, deadline=None)
def test_forward_equals_the_reference(x: np.ndarray, scale: float) -> None:
    module = FakeQuantize(symmetric(INT8, scale))
    got = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_array_equal(got, affine.fake_quantize(x, module.qparams()))


@given(st.integers(0, 255), st.floats(1e-3, 10))
@settings(max_examples=30, deadline=None)
def test_affine_forward_equals_the_reference(zero_point: int, scale: float) -> None:
    qparams = QParams(QuantSpec(0, 255, symmetric=False), np.float32(scale), np.int64(zero_point))
    module = FakeQuantize(qparams)
    x = np.linspace(-300, 300, 1001, dtype=np.float32)
    np.testing.assert_array_equal(
        module(torch.from_numpy(x)).detach().numpy(), affine.fake_quantize(x, module.qparams())
    )


def test_ties_round_to_even_and_ends_clip() -> None:
    module = FakeQuantize(symmetric(INT8, 1.0))
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -127.5, -128.5, -1e9])
    assert module(x).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128]


def test_nan_reaches_the_output() -> None:
    assert math.isnan(FakeQuantize(symmetric(INT8, 1.0))(torch.tensor([math.nan])).item())


def _gradients(function, x: torch.Tensor, log_scale: torch.Tensor, weight: torch.Tensor):
    x, log_scale = x.clone().requires_grad_(), log_scale.clone().requires_grad_()
    (function(x, log_scale) * weight).sum().backward()
    return x.grad, log_scale.grad


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("clip", [False, True])
def test_gradients_equal_autograd(low: float, high: float, memory_format: torch.memory_format, clip: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 8, 17, 13) * 5).contiguous(memory_format=memory_format)
    weight = torch.randn(3, 8, 17, 13)
    for scale in (0.01, 0.05, 0.3):
        start = torch.tensor(math.log(scale))
        ours = _gradients(
            lambda a, s: fake_quantize_tensor(a, s, -128, 127, low, high, clip_only=clip), x, start, weight
        )
        theirs = _gradients(
            lambda a, s: reference_fake_quantize(a, s, -128, 127, low, high, clip_only=clip), x, start, weight
        )
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1], rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((5, 7), 0), ((5, 7), 1), ((130, 11), 1)])
def test_channel_gradients_equal_autograd(shape: tuple[int, ...], axis: int) -> None:
    torch.manual_seed(1)
    w, weight = torch.randn(shape), torch.randn(shape)
    start = torch.randn(shape[axis]) * 0.3 - 4
    broadcast = [1] * len(shape)
    broadcast[axis] = -1
    ours = _gradients(lambda a, s: fake_quantize_channels(a, s, axis, -127, 127), w, start, weight)
    theirs = _gradients(lambda a, s: reference_fake_quantize(a, s.view(broadcast), -127, 127), w, start, weight)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-3)


def test_a_gradient_in_another_memory_layout_is_matched() -> None:
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    g = torch.randn(2, 4, 5, 6)
    scale = torch.tensor(-20.0).exp().log().requires_grad_()
    fake_quantize_tensor(x, scale.detach() + 20, -128, 127).backward(g)
    torch.testing.assert_close(x.grad, g)


def test_the_channel_scale_of_channels_last_weights_is_the_output_channel() -> None:
    w = torch.randn(6, 4, 3, 3)
    log_scale = torch.linspace(-5, -2, 6)
    plain = fake_quantize_channels(w, log_scale, 0, -127, 127)
    last = fake_quantize_channels(w.contiguous(memory_format=torch.channels_last), log_scale, 0, -127, 127)
    torch.testing.assert_close(plain, last, rtol=0, atol=0)


def test_two_tensors_with_one_owner_learn_one_scale() -> None:
    owner = FakeQuantize(symmetric(INT8, 0.1))
    other = FakeQuantize(symmetric(INT8, 0.1), low=0.0, owner=owner)
    assert other.log_scale is owner.log_scale


def test_channel_moments_equal_numpy_for_large_means() -> None:
    x = (np.random.default_rng(0).normal(0, 0.01, (1000, 37)) + np.linspace(-50, 50, 37)).astype(np.float32)
    mean, variance = kernels.channel_moments(x)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, x.var(axis=0, dtype=np.float64), rtol=1e-4)


def test_value_range_and_histogram() -> None:
    x = np.random.default_rng(0).normal(0, 1, 40_003).astype(np.float32)
    assert kernels.value_range(x) == (float(x.min()), float(x.max()))
    counts = np.zeros(64, np.int64)
    kernels.add_to_histogram(x, counts, 4.0)
    edges = np.linspace(-4, 4, 65)
    want = np.histogram(np.clip(x, -4, np.nextafter(np.float32(4), np.float32(0))), edges)[0]
    np.testing.assert_array_equal(counts, want)
    with pytest.raises(ValueError, match="powers of two"):
        kernels.add_to_histogram(x, counts, 3.0)
    x[77] = np.nan
    assert all(math.isnan(end) for end in kernels.value_range(x))


def test_a_weight_gradient_of_another_stride_but_the_same_order_is_not_copied() -> None:
    weight = torch.randn(6, 4, 1, 1)
    gradient = torch.as_strided(torch.randn(24), (6, 4, 1, 1), (4, 1, 4, 4))
    assert like(gradient, weight).data_ptr() == gradient.data_ptr()
    assert torch.equal(like(gradient, weight), gradient.reshape(-1))
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(like(torch.ones_like(image).cumsum(2).contiguous(), image), _flat_in_memory(image))


def _flat_in_memory(image: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(image).cumsum(2).permute(0, 2, 3, 1).reshape(-1)
