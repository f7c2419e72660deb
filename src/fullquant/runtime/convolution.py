"""Two-dimensional convolution: uneven padding without a copy, and the clamp behind it in the same kernel.

Padding that is larger at the end than at the beginning (TensorFlow's SAME with stride 2) is no argument of PyTorch's
convolution, and a padded copy of a large tensor takes three times as long as the depthwise convolution that reads it
(8x96x112x112, one thread of a Xeon: 5.2 and 1.7 ms). A kernel that is larger by zeros on the side of the smaller
padding has even padding and gives the same sums: 1.9 ms in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import UnsupportedOperatorError
from fullquant.runtime import depthwise
from fullquant.runtime.torch_rules import Tensor, attribute

# Further rows and columns of zeros are multiplied too: beyond so many the padded copy is cheaper.
_MOST_ZEROS = 2


def split_pads(pads: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """ONNX pads [begin..., end...] -> (symmetric padding, None) or ([0...], torch pad list from the last axis)."""
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return begin, None
    flat: list[int] = []
    for b, e in zip(reversed(begin), reversed(end), strict=True):
        flat += [b, e]
    return [0] * half, flat


def explicit_pads(node: ir.Node, rank: int) -> list[int]:
    """The attribute `pads`, zeros where there is none. UnsupportedOperatorError: paddings that depend on the size."""
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID", ""):
        raise UnsupportedOperatorError(
            f"{node.op_type} (node {node.name!r}) has auto_pad={mode}; explicit pads are needed"
        )
    return list(attribute(node, "pads", [0] * (2 * rank)))


class Convolution:
    """A Conv node: (x [N, C, H, W], w [O, C / groups, h, w], bias [O] or None) -> [N, O, H', W']."""

    def __init__(self, node: ir.Node) -> None:
        weight = node.inputs[1]
        if weight is None or weight.shape is None or len(weight.shape) != 4:
            raise UnsupportedOperatorError(
                f"Conv (node {node.name!r}): only two-dimensional convolutions are supported"
            )
        self.stride = tuple(attribute(node, "strides", [1, 1]))
        self.dilation = tuple(attribute(node, "dilations", [1, 1]))
        self.groups = int(attribute(node, "group", 1))
        pads = explicit_pads(node, 2)
        self.begin = (pads[0], pads[1])
        self.padding = [max(pads[axis], pads[axis + 2]) for axis in range(2)]
        self.zeros = even_zeros(pads)
        _, self.copied = split_pads(pads)
        # A dense kernel would multiply the zeros for every pair of channels.
        self.grows = weight.shape[1] == 1 and self.dilation == (1, 1) and max(self.zeros) <= _MOST_ZEROS

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if depthwise.takes(x, w, self.stride, self.dilation, self.groups):
            return depthwise.depthwise5(x, w, b, self.stride[0], self.begin, self.padding, self.zeros)
        x, w, padding = self._even(x, w)
        if _onednn(x, w):
            return self._pointwise(x, w, b, padding, "none", [])
        return F.conv2d(x, w, b, self.stride, padding, self.dilation, self.groups)

    def clipped(self, x: Tensor, w: Tensor, b: Tensor | None, low: float, high: float) -> Tensor:
        """clamp(convolution, low, high); without gradients in one kernel."""
        if not _onednn(x, w):
            return _clamp_in_place(self(x, w, b), low, high)
        x, w, padding = self._even(x, w)
        if (low, high) == (0.0, math.inf):
            return self._pointwise(x, w, b, padding, "relu", [])
        return self._pointwise(x, w, b, padding, "hardtanh", [low, high])

    def hard_swish(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """HardSwish of the convolution; without gradients in one kernel."""
        if not _onednn(x, w):
            return F.hardswish(self(x, w, b))
        x, w, padding = self._even(x, w)
        return self._pointwise(x, w, b, padding, "hardswish", [])

    def _even(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Input, weight and padding of the same convolution with even padding."""
        if self.copied is None:
            return x, w, self.padding
        if self.grows:
            return x, with_zeros(w, self.zeros), self.padding
        return F.pad(x, self.copied), w, [0, 0]

    def _pointwise(
        self, x: Tensor, w: Tensor, b: Tensor | None, padding: list[int], what: str, scalars: list[float]
    ) -> Tensor:
        """oneDNN's convolution, which PyTorch takes for a 1x1 kernel only with several threads or a large batch."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, w, b, padding, self.stride, self.dilation, self.groups, what, scalars, ""
        )
        return result


def even_zeros(pads: Sequence[int]) -> list[int]:
    """How many zeros on each side of a kernel make its padding even, in the order of torch's pad: [l, r, t, b]."""
    top, left, bottom, right = pads
    return [max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0)]


def with_zeros(w: Tensor, zeros: Sequence[int]) -> Tensor:
    """The kernel with rows and columns of zeros, in channels-last memory."""
    return F.pad(w, list(zeros)).contiguous(memory_format=torch.channels_last)


def _onednn(x: Tensor, w: Tensor) -> bool:
    """Whether oneDNN's convolution can be called by itself: it has no gradient."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == w.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and _has_onednn()
    )


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_convolution_pointwise"
    )


def _clamp_in_place(y: Tensor, low: float, high: float) -> Tensor:
    """clamp(y), whose gradient needs the result alone: what stood in y before is not kept."""
    if math.isinf(high) and low == 0.0:
        return F.relu_(y)
    if math.isfinite(low) and math.isfinite(high):
        return F.hardtanh_(y, low, high)
    return torch.clamp(y, low, high)


class ClippedConvolution:
    """Conv and the Relu or Clip behind it."""

    def __init__(self, convolution: Convolution, low: float, high: float) -> None:
        self.convolution, self.low, self.high = convolution, low, high

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self.convolution.clipped(x, w, b, self.low, self.high)
