"""Depthwise 5x5 convolution whose weight gradient is computed by a kernel of ours: see `kernels.depthwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fullquant.runtime import kernels

Tensor = torch.Tensor
Pair = tuple[int, int]

# With fewer, a row of channels is too short for its loop: PyTorch's gradient is then faster (measured: 48 and 64).
_FEWEST_CHANNELS = 64


class _Depthwise5(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None,
        stride: int, begin: Pair, padding: Sequence[int], zeros: Sequence[int],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, w)
        ctx.constants = (stride, begin, padding, zeros, b is not None)
        return F.conv2d(x, _grown(w, zeros), b, stride, tuple(padding), 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        stride, begin, padding, zeros, with_bias = ctx.constants
        g = g.contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        gx, _, gb = torch.ops.aten.convolution_backward(
            g, x, _grown(w, zeros), [channels], [stride, stride], list(padding), [1, 1], False, [0, 0], channels,
            [ctx.needs_input_grad[0], False, False],
        )  # fmt: skip
        gb = g.sum(dim=(0, 2, 3)) if with_bias and ctx.needs_input_grad[2] else None
        gw = None
        if ctx.needs_input_grad[1]:
            found = kernels.depthwise5_weight_gradient(_rows(x), _rows(g), stride, *begin)
            gw = torch.from_numpy(found).permute(2, 0, 1).unsqueeze(1)
        return gx, gw, gb, None, None, None, None


def _rows(x: Tensor) -> Any:
    return x.detach().permute(0, 2, 3, 1).numpy()


def takes(x: Tensor, w: Tensor, stride: Pair, dilation: Pair, groups: int) -> bool:
    """Whether the kernel computes this convolution's weight gradient: depthwise, 5x5, wide enough, on the CPU."""
    return (
        x.shape[1] >= _FEWEST_CHANNELS
        and w.shape[1:] == (1, 5, 5)
        and groups == x.shape[1] == w.shape[0]
        and stride[0] == stride[1]
        and dilation == (1, 1)
        and x.device.type == "cpu"
        and x.dtype == w.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch.is_grad_enabled()
        and w.requires_grad
    )


def depthwise5(
    x: Tensor, w: Tensor, b: Tensor | None, stride: int, begin: Pair, padding: Sequence[int], zeros: Sequence[int]
) -> Tensor:
    """F.conv2d(x, w, b, stride, padding, 1, C) for x and w that `takes` accepts.

    begin: rows and columns of padding before the image. zeros: what makes uneven padding even, [l, r, t, b] rows and
    columns of zeros around the kernel, with `padding` on both sides; see `runtime.convolution`.
    """
    result: Tensor = _Depthwise5.apply(x, w, b, stride, begin, padding, zeros)  # type: ignore[no-untyped-call]
    return result


def _grown(w: Tensor, zeros: Sequence[int]) -> Tensor:
    return F.pad(w, list(zeros)) if any(zeros) else w
