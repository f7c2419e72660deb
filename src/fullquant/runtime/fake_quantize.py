"""Fake-quantize as torch functions: values on the integer grid, gradients straight through, learned step sizes.

The scale is learned as its logarithm: a step of the optimizer is then a relative change of the scale, whatever its
size, and it cannot become negative (TQT, Jain et al. 2020, arXiv:1903.08066, section 3.2; gradient of the step size
as in LSQ, Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fullquant.numerics.qparams import SHORTENING_SLACK, FloatArray, QParams, QuantSpec
from fullquant.runtime import kernels

Tensor = torch.Tensor


def dense_view(x: Tensor) -> tuple[Tensor, Tensor]:
    """(dense, flat): x, or a contiguous copy where it has gaps, and its one-dimensional view in memory order."""
    if x.is_contiguous():
        return x, x.view(-1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, x.permute(0, 2, 3, 1).view(-1)
    x = x.contiguous()
    return x, x.view(-1)


def _like(g: Tensor, x: Tensor) -> Tensor:
    """g in the memory layout of the dense tensor x, flat."""
    if g.stride() != x.stride() or g.shape != x.shape:
        g = torch.empty_like(x).copy_(g)
    return dense_view(g)[1]


def step_size(log_scale: Tensor, mantissas: tuple[float, ...] = ()) -> Tensor:
    """exp(log_scale), shortened as `numerics.qparams.short_scale` does; same shape, no gradient."""
    scale = torch.exp(log_scale.detach())
    if not mantissas:
        return scale
    half, exponent = torch.frexp(scale.double())
    steps = torch.tensor([*mantissas, 2.0], dtype=torch.float64, device=scale.device)
    index = torch.bucketize(2 * half * (1 - SHORTENING_SLACK), steps)
    return torch.ldexp(steps[index], exponent - 1).to(log_scale.dtype)


class _PerTensor(torch.autograd.Function):
    """Single-pass CPU kernel; saves x only, which its producer holds anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_scale: Tensor, mantissas: tuple[float, ...],
        qlow: float, qhigh: float, low: float, high: float, inside: float,
    ) -> Tensor:  # fmt: skip
        x, flat = dense_view(x)
        y = torch.empty_like(x)
        scale = float(step_size(log_scale, mantissas))
        kernels.tensor_forward(flat.numpy(), dense_view(y)[1].numpy(), scale, qlow, qhigh, low, high)
        ctx.save_for_backward(x)
        ctx.constants = (scale, qlow, qhigh, low, high, inside)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gx = torch.empty_like(x)
        scale = ctx.constants[0]
        total = kernels.tensor_backward(
            dense_view(x)[1].numpy(), _like(g, x).numpy(), dense_view(gx)[1].numpy(), *ctx.constants
        )
        return gx, torch.tensor(total * scale, dtype=torch.float32), None, None, None, None, None, None


class _PerChannel(torch.autograd.Function):
    """Weights: one scale per index of `axis`; log_scale has shape (C,)."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, log_scale: Tensor, mantissas: tuple[float, ...], axis: int, qlow: float, qhigh: float
    ) -> Tensor:
        w, flat = dense_view(w)
        shape = _channel_shape(w, axis)
        scale = step_size(log_scale, mantissas)
        y = torch.empty_like(w)
        kernels.channels_forward(
            flat.view(shape).numpy(), dense_view(y)[1].view(shape).numpy(), scale.numpy(), qlow, qhigh
        )
        ctx.save_for_backward(w, scale)
        ctx.constants = (shape, qlow, qhigh)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        w, scale = ctx.saved_tensors
        shape, qlow, qhigh = ctx.constants
        gw = torch.empty_like(w)
        total = kernels.channels_backward(
            dense_view(w)[1].view(shape).numpy(), _like(g, w).view(shape).numpy(),
            dense_view(gw)[1].view(shape).numpy(),
            scale.numpy(), qlow, qhigh,
        )  # fmt: skip
        return gw, torch.from_numpy(total.astype(np.float32)) * scale, None, None, None, None


def _channel_shape(w: Tensor, axis: int) -> tuple[int, int, int]:
    """(outer, C, inner) of w in memory order. Axis 0 is outermost in channels-last memory too."""
    if axis == 0:
        return 1, w.shape[0], w.numel() // w.shape[0]
    if not w.is_contiguous():
        raise ValueError(f"axis {axis} of a tensor in channels-last memory")
    return math.prod(w.shape[:axis]), w.shape[axis], math.prod(w.shape[axis + 1 :])


class _Round(torch.autograd.Function):
    """Rounds half to even; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def reference_fake_quantize(
    x: Tensor,
    log_scale: Tensor,
    qlow: float,
    qhigh: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    clip_only: bool = False,
    mantissas: tuple[float, ...] = (),
) -> Tensor:
    """The same in differentiable torch operators, for every device and for the tests of the kernels.

    log_scale: shape () or broadcastable to x.
    """
    scale = torch.exp(log_scale)
    if mantissas:
        # The gradient is that of the shortened scale as a multiple of the learned one.
        scale = scale * (step_size(log_scale, mantissas) / scale.detach())
    clamped = torch.clamp(x, low, high) if math.isfinite(low) or math.isfinite(high) else x
    v = clamped / scale
    rounded: Tensor = _Round.apply(torch.clamp(v, qlow, qhigh))  # type: ignore[no-untyped-call]
    y = rounded * scale
    if not clip_only:
        return y
    # Inside the range the step is a constant; only clipped values see it as a variable.
    return torch.where((v < qlow) | (v > qhigh), y, clamped + (y - clamped).detach())


def fake_quantize_tensor(
    x: Tensor,
    log_scale: Tensor,
    qlow: float,
    qhigh: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    clip_only: bool = False,
    mantissas: tuple[float, ...] = (),
) -> Tensor:
    """Per_tensor fake-quantize of clamp(x, low, high); the fused activation is ReLU with low 0, ReLU6 with high 6.

    clip_only: the scale's gradient comes from clipped values alone, as in PACT (arXiv:1805.06085).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        result: Tensor = _PerTensor.apply(  # type: ignore[no-untyped-call]
            x, log_scale, mantissas, qlow, qhigh, low, high, 0.0 if clip_only else 1.0
        )
        return result
    return reference_fake_quantize(x, log_scale, qlow, qhigh, low, high, clip_only=clip_only, mantissas=mantissas)


def fake_quantize_channels(
    w: Tensor, log_scale: Tensor, axis: int, qlow: float, qhigh: float, *, mantissas: tuple[float, ...] = ()
) -> Tensor:
    """Per_channel fake-quantize; log_scale (C,) runs along `axis`."""
    if w.device.type == "cpu" and w.dtype == torch.float32:
        result: Tensor = _PerChannel.apply(w, log_scale, mantissas, axis, qlow, qhigh)  # type: ignore[no-untyped-call]
        return result
    shape = [1] * w.ndim
    shape[axis] = -1
    return reference_fake_quantize(w, log_scale.view(shape), qlow, qhigh, mantissas=mantissas)


class _Replace(torch.autograd.Function):
    """The second tensor forward, the gradient to the first."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, used: Tensor) -> Tensor:
        return used

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def round_bias(bias: Tensor, scale_x: Tensor, scale_w: Tensor) -> Tensor:
    """The bias (C,) on the int32 grid of step scale_x * scale_w, as integer kernels add it; the gradient passes.

    scale_x: shape (); scale_w: () or (C,).
    """
    with torch.no_grad():
        scale = scale_x * scale_w
        steps = torch.round(bias.double() / scale.double())
        rounded = steps.float() * scale
    result: Tensor = _Replace.apply(bias, rounded)  # type: ignore[no-untyped-call]
    return result


class FakeQuantize(nn.Module):
    """One grid with its learned scale. The zero point is fixed at construction.

    low, high: bounds of the activation that is fused in front (ReLU: 0, inf; ReLU6: 0, 6).
    owner: the FakeQuantize whose scale this one uses; both then learn one parameter.
    clip_only: the scale of activations learns from clipped values alone (PACT).
    """

    zero_point: Tensor

    def __init__(
        self, qparams: QParams, *, low: float = -math.inf, high: float = math.inf, owner: FakeQuantize | None = None
    ) -> None:
        super().__init__()
        self.spec: QuantSpec = qparams.spec
        self.clip_only = False
        self.low, self.high = low, high
        start = torch.log(torch.from_numpy(np.array(qparams.scale, dtype=np.float32)))
        self.log_scale: nn.Parameter = owner.log_scale if owner is not None else nn.Parameter(start)
        self.register_buffer("zero_point", torch.from_numpy(np.array(qparams.zero_point)))
        if qparams.spec.axis is not None and not qparams.spec.symmetric:
            raise ValueError("a per_channel grid is symmetric")
        shift = 0 if qparams.spec.axis is not None else int(qparams.zero_point)
        self.qlow, self.qhigh = float(qparams.spec.qmin - shift), float(qparams.spec.qmax - shift)

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.axis is None:
            return fake_quantize_tensor(
                x, self.log_scale, self.qlow, self.qhigh, self.low, self.high,
                clip_only=self.clip_only, mantissas=self.spec.mantissas,
            )  # fmt: skip
        return fake_quantize_channels(
            x, self.log_scale, self.spec.axis, self.qlow, self.qhigh, mantissas=self.spec.mantissas
        )

    def step(self) -> Tensor:
        """The scale in use, shape () or (C,), without gradient."""
        return step_size(self.log_scale, self.spec.mantissas)

    def scale(self) -> FloatArray:
        """The scale as float32 NumPy, shape () or (C,)."""
        array: FloatArray = self.step().cpu().numpy().astype(np.float32)
        return array

    def set_scale(self, scale: FloatArray) -> None:
        """Sets the scale, shape () or (C,); `scale` gives back the nearest float32 that has a float32 logarithm."""
        self.log_scale.data.copy_(torch.log(torch.from_numpy(np.array(scale, dtype=np.float32))))

    def qparams(self) -> QParams:
        """The present grid, scale and zero point."""
        return QParams(self.spec, self.scale(), self.zero_point.cpu().numpy())
