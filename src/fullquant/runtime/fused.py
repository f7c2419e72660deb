"""An operator together with the fake-quantize around it, as one torch operation: see `kernels.fused`.

Each class here stands for two or three steps of the executor and gives the same bits. Where the kernel does not apply
(another device, another layout), the separate operations run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fullquant.runtime import kernels
from fullquant.runtime.fake_quantize import FakeQuantize, dense_view, is_dense, like

Tensor = torch.Tensor
_Range = tuple[float, float]


def _flat(x: Tensor) -> Any:
    return dense_view(x)[1].numpy()


def _gradient(total: float, scale: float) -> Tensor:
    """d / d log(scale)."""
    return torch.tensor(total * scale, dtype=torch.float32)


class _HardSwish(torch.autograd.Function):
    """Saves x alone: neither the quantized x nor HardSwish of it is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_in: Tensor, log_out: Tensor,
        scale_in: float, range_in: _Range, scale: float, range_out: _Range, inside: float,
    ) -> Tensor:  # fmt: skip
        x, flat = dense_view(x)
        y = torch.empty_like(x)
        kernels.hard_swish_forward(flat.numpy(), _flat(y), scale_in, range_in, scale, range_out)
        ctx.save_for_backward(x)
        ctx.constants = (scale_in, range_in, scale, range_out, inside)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gx = torch.empty_like(x)
        first, second = kernels.hard_swish_backward(_flat(x), like(g, x).numpy(), _flat(gx), *ctx.constants)
        scale_in, _, scale, _, _ = ctx.constants
        return gx, _gradient(first, scale_in), _gradient(second, scale), None, None, None, None, None


class _Sum(torch.autograd.Function):
    """Saves the two addends, which their producers hold anyway, and not their sum."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, r: Tensor, log_scale: Tensor, scale: float, grid: _Range, bounds: _Range, inside: float
    ) -> Tensor:
        y = torch.empty_like(p)
        kernels.sum_forward(_flat(p), _flat(r), _flat(y), scale, grid, bounds)
        ctx.save_for_backward(p, r)
        ctx.constants = (scale, grid, bounds, inside)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        p, r = ctx.saved_tensors
        gx = torch.empty_like(p)
        total = kernels.sum_backward(_flat(p), _flat(r), like(g, p).numpy(), _flat(gx), *ctx.constants)
        return gx, gx, _gradient(total, ctx.constants[0]), None, None, None, None


class _Gated(torch.autograd.Function):
    """x [N, C, H, W] in channels-last memory times s [N, C, 1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, log_scale: Tensor, scale: float, grid: _Range, inside: float) -> Tensor:
        y = torch.empty_like(x)
        kernels.scaled_forward(_rows(x), _gates(s), _rows(y), scale, grid)
        ctx.save_for_backward(x, s)
        ctx.constants = (scale, grid, inside)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, s = ctx.saved_tensors
        g = g.contiguous(memory_format=torch.channels_last)
        gx, gs = torch.empty_like(x), torch.empty(s.shape)
        total = kernels.scaled_backward(_rows(x), _gates(s), _rows(g), _rows(gx), _gates(gs), *ctx.constants)
        return gx, gs, _gradient(total, ctx.constants[0]), None, None, None


def _rows(x: Tensor) -> Any:
    """[N, H * W, C] of a channels-last tensor."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]).numpy()


def _gates(s: Tensor) -> Any:
    return s.reshape(s.shape[0], s.shape[1]).numpy()


def _on_cpu(*tensors: Tensor) -> bool:
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


class FusedHardSwish:
    """fake_quantize, HardSwish, fake_quantize."""

    def __init__(self, before: FakeQuantize, after: FakeQuantize) -> None:
        self.before, self.after = before, after

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.before, self.after
        if not _on_cpu(x):
            return second(F.hardswish(first(x)))  # type: ignore[no-any-return]
        result: Tensor = _HardSwish.apply(  # type: ignore[no-untyped-call]
            x, first.log_scale, second.log_scale,
            first.scale_value(), first.grid, second.scale_value(), second.grid, second.inside,
        )  # fmt: skip
        return result


class FusedSum:
    """Add, clamp where the quantizer has a fused activation, fake_quantize."""

    def __init__(self, quantizer: FakeQuantize) -> None:
        self.quantizer = quantizer

    def __call__(self, p: Tensor, r: Tensor) -> Tensor:
        quantizer = self.quantizer
        if not _on_cpu(p, r) or p.shape != r.shape or p.stride() != r.stride() or not is_dense(p):
            return quantizer(p + r)  # type: ignore[no-any-return]
        result: Tensor = _Sum.apply(  # type: ignore[no-untyped-call]
            p, r, quantizer.log_scale, quantizer.scale_value(), quantizer.grid, quantizer.bounds, quantizer.inside
        )
        return result


class FusedGate:
    """Mul by a factor for each image and channel, fake_quantize: the end of squeeze-and-excitation."""

    def __init__(self, quantizer: FakeQuantize) -> None:
        self.quantizer = quantizer

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        x, s = (a, b) if a.numel() >= b.numel() else (b, a)
        quantizer = self.quantizer
        gated = x.ndim == 4 and s.shape == (*x.shape[:2], 1, 1) and x.is_contiguous(memory_format=torch.channels_last)
        if not gated or not _on_cpu(x, s):
            return quantizer(a * b)  # type: ignore[no-any-return]
        result: Tensor = _Gated.apply(  # type: ignore[no-untyped-call]
            x, s, quantizer.log_scale, quantizer.scale_value(), quantizer.grid, quantizer.inside
        )
        return result
