"""Convolution turned round, and windows laid out and put back: conv2d_transpose, unfold, fold."""

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
    """The windows of a map as columns: [N, C * kernel, windows].

    Patches side by side are moved; of others a depthwise convolution with unit kernels makes the columns.
    """
    x = c.input("X")
    (channels,) = c.static_dims(x, 1)
    kernel = c.integers("kernel_sizes")
    if _side_by_side(c, kernel):
        height, width = c.static_dims(x, 2, 3)
        rows, columns = height // kernel[0], width // kernel[1]
        if rows * kernel[0] == height and columns * kernel[1] == width:
            patches = c.reshape(x, [-1, channels, rows, kernel[0], columns, kernel[1]])
            moved = c.node("Transpose", patches, perm=[0, 1, 3, 5, 2, 4])
            return c.reshape(moved, [-1, channels * kernel[0] * kernel[1], rows * columns])
    area = kernel[0] * kernel[1]
    paddings = c.integers("paddings") or [0]
    # Paddle's four numbers are top, left, bottom, right here, as in ONNX
    pads = paddings * (4 // len(paddings))
    laid_out = c.node(
        "Conv", x, _unit_kernels(c, channels, kernel), kernel_shape=kernel, strides=c.integers("strides") or [1, 1],
        dilations=c.integers("dilations") or [1, 1], pads=pads, group=channels,
    )  # fmt: skip
    return c.reshape(laid_out, [0, channels * area, -1])


def fold(c: OpContext) -> ir.Value:
    """The inverse of unfold: columns added up where they lie.

    Patches side by side are moved; others go through a transposed convolution with unit kernels.
    """
    x = c.input("X")
    height, width = c.integers("output_sizes")
    kernel, strides = c.integers("kernel_sizes"), c.integers("strides") or [1, 1]
    dilations, paddings = c.integers("dilations") or [1, 1], c.integers("paddings") or [0]
    top, left, bottom, right = paddings * (4 // len(paddings))
    rows = (height + top + bottom - dilations[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    columns = (width + left + right - dilations[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    (depth,) = c.static_dims(x, 1)
    channels = depth // (kernel[0] * kernel[1])
    if _side_by_side(c, kernel) and rows * kernel[0] == height and columns * kernel[1] == width:
        patches = c.reshape(x, [-1, channels, kernel[0], kernel[1], rows, columns])
        return c.reshape(c.node("Transpose", patches, perm=[0, 1, 4, 2, 5, 3]), [-1, channels, height, width])
    covered = [
        (count - 1) * stride + dilation * (k - 1) + 1
        for count, stride, dilation, k in zip((rows, columns), strides, dilations, kernel, strict=True)
    ]
    extra = [height + top + bottom - covered[0], width + left + right - covered[1]]
    return c.node(
        "ConvTranspose", c.reshape(x, [0, depth, rows, columns]), _unit_kernels(c, channels, kernel),
        kernel_shape=kernel, strides=strides, dilations=dilations, pads=[top, left, bottom, right],
        output_padding=extra, group=channels,
    )  # fmt: skip


def _side_by_side(c: OpContext, kernel: list[int]) -> bool:
    """Windows that neither overlap nor leave anything out between them, without padding."""
    plain = (c.integers("dilations") or [1, 1]) == [1, 1] and not any(c.integers("paddings"))
    return plain and (c.integers("strides") or [1, 1]) == kernel


def _unit_kernels(c: OpContext, channels: int, kernel: list[int]) -> ir.Value:
    """[C * kernel, 1, kernel]: one kernel for each place of the window, of each channel."""
    area = kernel[0] * kernel[1]
    unit = np.tile(np.eye(area, dtype=np.float32), (channels, 1))
    return c.tensor(unit.reshape(channels * area, 1, *kernel))
