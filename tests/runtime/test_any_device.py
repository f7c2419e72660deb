"""The closed forms for devices without a kernel, on the CPU: here double precision takes their path."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from fullquant.runtime import any_device
from fullquant.runtime.any_device import EAGER, Form, compiled, fastest, form_for
from fullquant.runtime.fake_quantize import fake_quantize_tensor, reference_fake_quantize

CPU = torch.device("cpu")


def _gradients(function, x: torch.Tensor, log_scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    log_scale = log_scale.clone().requires_grad_()
    y = function(x, log_scale)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    assert x.grad is not None
    assert log_scale.grad is not None
    return y.detach(), x.grad, log_scale.grad


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_autograd(
    bounds: tuple[float, float], clip: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 6, 9, 7, dtype=torch.float64) * 5).contiguous(memory_format=layout)
    log_scale = torch.tensor(math.log(0.03), dtype=torch.float64)
    ours = _gradients(lambda a, s: fake_quantize_tensor(a, s, -128, 127, *bounds, clip_only=clip), x, log_scale)
    want = _gradients(lambda a, s: reference_fake_quantize(a, s, -128, 127, *bounds, clip_only=clip), x, log_scale)
    for got, expected in zip(ours, want, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_form_equals_the_kernel() -> None:
    x = torch.linspace(-9, 9, 4001)
    args = (torch.tensor(0.05), -128.0, 127.0, 0.0, 6.0)
    kernel = fake_quantize_tensor(x, torch.tensor(0.0), *args[1:], scale=args[0])
    assert torch.equal(EAGER.forward(x, *args), kernel)


def test_the_fastest_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": 3.0, "quick": 1.0, "eager": 2.0}
    monkeypatch.setattr(any_device, "_seconds", lambda form, x, scale: times[form.name])
    forms = [Form(name, EAGER.forward, EAGER.backward) for name in times]
    assert fastest(forms, CPU, size=10).name == "quick"


def test_a_form_that_does_not_run_is_never_taken() -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("no compiler")

    assert fastest([Form("broken", broken, EAGER.backward), EAGER], CPU, size=10) is EAGER


def test_without_a_gpu_nothing_is_compiled_or_measured() -> None:
    assert form_for(CPU) is EAGER


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_compiled_form_computes_the_same() -> None:
    form = compiled()
    args = (torch.tensor(0.05), -128.0, 127.0, 0.0, 6.0)
    for size in (4001, 70_000):
        x = torch.linspace(-9, 9, size)
        assert torch.equal(form.forward(x, *args), EAGER.forward(x, *args))
        got, want = form.backward(x, x.cos(), *args, 1.0), EAGER.backward(x, x.cos(), *args, 1.0)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])
