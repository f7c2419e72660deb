"""Samples of what a convolution reads: some of its windows, not all of them as im2col would copy them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from fullquant.runtime.torch_rules import attribute

Tensor = torch.Tensor


@dataclass(frozen=True)
class Window:
    """The kernel of a two-dimensional convolution; pads: [top, left, bottom, right]."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)

    @classmethod
    def of(cls, node: ir.Node, kernel: tuple[int, int]) -> Window:
        """That of a Conv node."""
        stride, dilation = (attribute(node, key, [1, 1]) for key in ("strides", "dilations"))
        pads = tuple(attribute(node, "pads", [0, 0, 0, 0]))
        return cls(kernel, (stride[0], stride[1]), (dilation[0], dilation[1]), pads)

    def samples(self, x: Tensor, count: int, random: torch.Generator) -> Tensor:
        """About `count` windows of x [N, C, H, W], [rows, taps, C]; what lies in the padding is zero."""
        images, _, height, width = x.shape
        high, wide = (self._positions(axis, size) for axis, size in enumerate((height, width)))
        chosen = spread_evenly(images * high * wide, count, random).to(x.device)
        image, top, left = chosen // (high * wide), chosen // wide % high, chosen % wide
        h, inside_h = self._taps(0, top, height)
        w, inside_w = self._taps(1, left, width)
        found = x.permute(0, 2, 3, 1)[image[:, None, None], h[:, :, None], w[:, None, :]]
        if any(self.pads):
            found = found * (inside_h[:, :, None] & inside_w[:, None, :])[..., None]
        return found.reshape(len(chosen), -1, x.shape[1])

    def _positions(self, axis: int, size: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + self.pads[axis] + self.pads[axis + 2] - reach) // self.stride[axis] + 1

    def _taps(self, axis: int, position: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Coordinates [rows, k] of each window's taps, moved inside, and whether they were."""
        taps = torch.arange(self.kernel[axis], device=position.device) * self.dilation[axis]
        where = position[:, None] * self.stride[axis] - self.pads[axis] + taps
        return where.clamp(0, size - 1), (where >= 0) & (where < size)


def spread_evenly(total: int, count: int, random: torch.Generator) -> Tensor:
    """`count` of the numbers below `total` (all, where there are no more), ascending, one drawn from each equal part.

    Equal steps would meet the same columns of every image.
    """
    if count >= total:
        return torch.arange(total)
    drawn = torch.arange(count, dtype=torch.float64) + torch.rand(count, dtype=torch.float64, generator=random)
    return (drawn * (total / count)).long().clamp_max(total - 1)
