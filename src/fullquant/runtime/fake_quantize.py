"""Fake-quantize as torch functions: values on the integer grid, gradients straight through, learned step sizes.

The scale is learned as its logarithm: a step of the optimizer is then a relative change of the scale, whatever its
size, and it cannot become negative (TQT, Jain et al. 2020, arXiv:1903.08066, section 3.2; gradient of the step size
as in LSQ, Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fullquant.numerics.qparams import SHORTENING_SLACK, FloatArray, QParams, QuantSpec
from fullquant.runtime import kernels
from fullquant.runtime.any_device import FakeQuantizeAnywhere

Tensor = torch.Tensor


def dense_view(x: Tensor) -> tuple[Tensor, Tensor]:
    """(dense, flat): x, or a contiguous copy where it has gaps, and its one-dimensional view in memory order."""
    if x.is_contiguous():
        return x, x.view(-1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, x.permute(0, 2, 3, 1).view(-1)
    x = x.contiguous()
    return x, x.view(-1)


def is_dense(x: Tensor) -> bool:
    """Whether x lies in memory without gaps, contiguous or channels-last."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def like(g: Tensor, x: Tensor) -> Tensor:
    """g in the memory layout of the dense tensor x, flat."""
    if not _same_order(g, x):
        g = torch.empty_like(x).copy_(g)
    return dense_view(g)[1]


def _same_order(g: Tensor, x: Tensor) -> bool:
    """Whether both lie in memory in the same order; the stride of a dimension of size 1 says nothing."""
    if g.shape != x.shape:
        return False
    return all(a == b or size == 1 for a, b, size in zip(g.stride(), x.stride(), x.shape, strict=True))


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
        ctx: Any, x: Tensor, log_scale: Tensor, scale: float,
        qlow: float, qhigh: float, low: float, high: float, inside: float,
    ) -> Tensor:  # fmt: skip
        x, flat = dense_view(x)
        y = torch.empty_like(x)
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
            dense_view(x)[1].numpy(), like(g, x).numpy(), dense_view(gx)[1].numpy(), *ctx.constants
        )
        return gx, torch.tensor(total * scale, dtype=torch.float32), None, None, None, None, None, None


class _PerChannel(torch.autograd.Function):
    """Weights: one scale per index of `axis`; log_scale and scale have shape (C,)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_scale: Tensor, scale: Tensor, axis: int, qlow: float, qhigh: float) -> Tensor:
        w, flat = dense_view(w)
        shape = _channel_shape(w, axis)
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
            dense_view(w)[1].view(shape).numpy(), like(g, w).view(shape).numpy(),
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
    scale: Tensor | None = None,
) -> Tensor:
    """The same in differentiable torch operators, for every device and for the tests of the kernels.

    log_scale: shape () or broadcastable to x. scale: the scale in use, exp(log_scale) where it is not given.
    """
    learned = torch.exp(log_scale)
    # The gradient is that of the scale in use as a multiple of the learned one.
    scale = learned if scale is None else learned * (scale / learned.detach())
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
    scale: float | Tensor | None = None,
) -> Tensor:
    """Per_tensor fake-quantize of clamp(x, low, high); the fused activation is ReLU with low 0, ReLU6 with high 6.

    scale: the scale in use, exp(log_scale) where it is not given.
    clip_only: the scale's gradient comes from clipped values alone, as in PACT (arXiv:1805.06085).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        number = float(torch.exp(log_scale.detach()) if scale is None else scale)
        result: Tensor = _PerTensor.apply(  # type: ignore[no-untyped-call]
            x, log_scale, number, qlow, qhigh, low, high, 0.0 if clip_only else 1.0
        )
        return result
    tensor = torch.exp(log_scale.detach()) if scale is None else torch.as_tensor(scale, device=x.device)
    dense, flat = dense_view(x)
    y: Tensor = FakeQuantizeAnywhere.apply(  # type: ignore[no-untyped-call]
        flat, log_scale, tensor, qlow, qhigh, low, high, 0.0 if clip_only else 1.0
    )
    return torch.as_strided(y, dense.shape, dense.stride())


def fake_quantize_channels(
    w: Tensor, log_scale: Tensor, axis: int, qlow: float, qhigh: float, *, scale: Tensor | None = None
) -> Tensor:
    """Per_channel fake-quantize; log_scale (C,) runs along `axis`. scale: as in `fake_quantize_tensor`, (C,)."""
    if scale is None:
        scale = torch.exp(log_scale.detach())
    if w.device.type == "cpu" and w.dtype == torch.float32:
        result: Tensor = _PerChannel.apply(w, log_scale, scale, axis, qlow, qhigh)  # type: ignore[no-untyped-call]
        return result
    shape = [1] * w.ndim
    shape[axis] = -1
    return reference_fake_quantize(w, log_scale.view(shape), qlow, qhigh, scale=scale.view(shape))


@dataclass
class ScaleInUse:
    """The scale of a quantizer during one forward pass, where somebody has computed it for all at once.

    value: shape () or (C,). number: in its place a float, of a per_tensor scale on the CPU.
    first: where the scale begins in the vector of all, see `parameters.Scales`.
    """

    value: Tensor | None = None
    number: float | None = None
    first: int = 0


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
        self.in_use: ScaleInUse = owner.in_use if owner is not None else ScaleInUse()
        self.register_buffer("zero_point", torch.from_numpy(np.array(qparams.zero_point)))
        if qparams.spec.axis is not None and not qparams.spec.symmetric:
            raise ValueError("a per_channel grid is symmetric")
        shift = 0 if qparams.spec.axis is not None else int(qparams.zero_point)
        self.qlow, self.qhigh = float(qparams.spec.qmin - shift), float(qparams.spec.qmax - shift)

    @property
    def grid(self) -> tuple[float, float]:
        """(qlow, qhigh): the ends of the grid in steps from zero."""
        return self.qlow, self.qhigh

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of the fused activation."""
        return self.low, self.high

    @property
    def inside(self) -> float:
        """What the scale's gradient from values that are not clipped is multiplied by."""
        return 0.0 if self.clip_only else 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.axis is None:
            scale: float | Tensor = self.scale_value() if x.device.type == "cpu" else self.current()
            return fake_quantize_tensor(
                x, self.log_scale, self.qlow, self.qhigh, self.low, self.high, clip_only=self.clip_only, scale=scale
            )
        return fake_quantize_channels(x, self.log_scale, self.spec.axis, self.qlow, self.qhigh, scale=self.current())

    def current(self) -> Tensor:
        """The scale of this pass, shape () or (C,), without gradient."""
        if self.in_use.value is None and self.in_use.number is not None:
            return torch.tensor(self.in_use.number)
        return self.step() if self.in_use.value is None else self.in_use.value

    def scale_value(self) -> float:
        """The scale of this pass as a number; per_tensor."""
        return float(self.step()) if self.in_use.number is None else self.in_use.number

    def step(self) -> Tensor:
        """The scale that log_scale stands for now, shape () or (C,), without gradient."""
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
