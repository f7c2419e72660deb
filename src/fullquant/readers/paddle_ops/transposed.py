"""Convolution turned round, and windows laid out: conv2d_transpose, unfold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext
from fullquant.readers.paddle_ops.conv import require_nchw


def conv2d_transpose(c: OpContext) -> ir.Value:
    """ConvTranspose: output = (input - 1) * stride - padding + dilation * (kernel - 1) + 1 + output_padding."""
    require_nchw(c)
    x, weight = c.input("Input"), c.input("Filter")
    kernel = c.static_dims(weight, 2, 3)
    strides, dilations = c.integers("strides") or [1, 1], c.integers("dilations") or [1, 1]
    algorithm = c.text("padding_algorithm", "EXPLICIT")
    pads = _pads(c, algorithm, kernel, strides)
    if algorithm == "SAME":
        dilations = [1, 1]
    extra = c.integers("output_padding") or [0, 0]
    wanted = c.known_integers("output_size", "OutputSizeTensor", "OutputSizeTensorList")
    if wanted:
        sizes = c.static_dims(x, 2, 3)
        smallest = [
            (size - 1) * stride - pads[i] - pads[i + 2] + dilation * (k - 1) + 1
            for i, (size, stride, dilation, k) in enumerate(zip(sizes, strides, dilations, kernel, strict=True))
        ]
        extra = [size - least for size, least in zip(wanted * (2 // len(wanted)), smallest, strict=True)]
    return c.node(
        "ConvTranspose", x, weight, kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads,
        output_padding=extra, group=c.integer("groups", 1),
    )  # fmt: skip


def _pads(c: OpContext, algorithm: str, kernel: list[int], strides: list[int]) -> list[int]:
    """[top, left, bottom, right] of what is cut from the output. Paddle computes SAME from the input's size."""
    if algorithm == "VALID":
        return [0, 0, 0, 0]
    if algorithm == "SAME":
        sizes = c.static_dims(c.input("Input"), 2, 3)
        totals = [
            max((-(-size // stride) - 1) * stride + k - size, 0)
            for size, stride, k in zip(sizes, strides, kernel, strict=True)
        ]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    paddings = c.integers("paddings") or [0, 0]
    if len(paddings) == 2:
        return paddings * 2
    top, bottom, left, right = paddings[-4:]
    return [top, left, bottom, right]


def unfold(c: OpContext) -> ir.Value:
    """The windows of a map as columns: [N, C * kernel, windows], as a depthwise convolution with unit kernels."""
    x = c.input("X")
    (channels,) = c.static_dims(x, 1)
    kernel = c.integers("kernel_sizes")
    area = kernel[0] * kernel[1]
    unit = np.tile(np.eye(area, dtype=np.float32), (channels, 1)).reshape(channels * area, 1, *kernel)
    paddings = c.integers("paddings") or [0]
    # Paddle's four numbers are top, left, bottom, right here, as in ONNX
    pads = paddings * (4 // len(paddings))
    columns = c.node(
        "Conv", x, c.tensor(unit), kernel_shape=kernel, strides=c.integers("strides") or [1, 1],
        dilations=c.integers("dilations") or [1, 1], pads=pads, group=channels,
    )  # fmt: skip
    return c.reshape(columns, [0, channels * area, -1])
