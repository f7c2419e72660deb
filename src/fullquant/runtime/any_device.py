"""Per_tensor fake-quantize for devices without a kernel of ours: the closed forms of value and gradients in torch.

Nothing but x is kept for the backward pass, where differentiable operators would keep six tensors of its size. On a GPU
the two functions are also compiled (torch.compile makes one Triton kernel of each), and what is faster there is taken,
once for a process. On every other device they run as they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
log = logging.getLogger("fullquant")

# Elements of the tensor on which the forms are compared: 64 MB, beyond the caches of GPUs.
_TRIAL_SIZE = 1 << 24
_TRIALS = 10


def forward(x: Tensor, scale: Tensor, qlow: float, qhigh: float, low: float, high: float) -> Tensor:
    """scale * clip(rint(clamp(x, low, high) / scale), qlow, qhigh), x of any shape, scale of shape ()."""
    return torch.clamp(torch.round(torch.clamp(x, low, high) / scale), qlow, qhigh) * scale


def backward(
    x: Tensor, g: Tensor, scale: Tensor, qlow: float, qhigh: float, low: float, high: float, inside: float
) -> tuple[Tensor, Tensor]:
    """(gradient of x, gradient of scale), as `kernels.tensor_backward` has them."""
    v = torch.clamp(x, low, high) / scale
    below, above = v < qlow, v > qhigh
    slope = torch.where(below, qlow, torch.where(above, qhigh, inside * (torch.round(v) - v)))
    passes = ~(below | above) & (x > low) & (x < high)
    return torch.where(passes, g, torch.zeros_like(g)), (g * slope).sum()


@dataclass(frozen=True)
class Form:
    """One way to compute: `forward` and `backward` as they are, or compiled."""

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor]]


EAGER = Form("eager", forward, backward)
_chosen: dict[str, Form] = {}


def form_for(device: torch.device) -> Form:
    """The form that is used on a device; measured when it is first asked for on a GPU."""
    key = str(device)
    if key not in _chosen:
        _chosen[key] = fastest([EAGER, compiled()], device) if device.type == "cuda" else EAGER
        log.debug("fake-quantize on %s: %s", device, _chosen[key].name)
    return _chosen[key]


def compiled() -> Form:
    """The functions through torch.compile, for one-dimensional tensors of any length."""
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True}
    return Form("compiled", torch.compile(forward, **options), torch.compile(backward, **options))


def fastest(forms: list[Form], device: torch.device, size: int = _TRIAL_SIZE) -> Form:
    """The form whose forward and backward take least time on a tensor of `size`; one that fails is left out."""
    x = torch.linspace(-8.0, 8.0, size, device=device)
    scale = torch.tensor(0.05, device=device)
    times = {form.name: _seconds(form, x, scale) for form in forms}
    return min(forms, key=lambda form: times[form.name])


def _seconds(form: Form, x: Tensor, scale: Tensor) -> float:
    """The median of some runs; infinity where the form does not run here (no compiler, no Triton)."""
    constants = (-128.0, 127.0, -math.inf, math.inf)
    found: list[float] = []
    try:
        for _ in range(_TRIALS + 2):
            began = time.perf_counter()
            form.forward(x, scale, *constants)
            form.backward(x, x, scale, *constants, 1.0)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            found.append(time.perf_counter() - began)
    except Exception as error:  # the compiler's many ways to fail
        log.debug("fake-quantize, %s: %s", form.name, error)
        return math.inf
    return sorted(found[2:])[_TRIALS // 2]


class FakeQuantizeAnywhere(torch.autograd.Function):
    """y of `forward`; saves x and the scale only. Arguments: flat x, log_scale, scale, then the constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_scale: Tensor, scale: Tensor,
        qlow: float, qhigh: float, low: float, high: float, inside: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, scale)
        ctx.constants = (qlow, qhigh, low, high, inside)
        return form_for(x.device).forward(x, scale, qlow, qhigh, low, high)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        gx, gs = form_for(x.device).backward(x, g.contiguous(), scale, *ctx.constants)
        return gx, gs * scale, None, None, None, None, None, None
