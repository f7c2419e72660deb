"""Adaptive pooling to sizes that don't divide the input's: windows of several sizes, that may overlap."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def _windows(size: int, count: int) -> list[tuple[int, int]]:
    """Begin and end of each window: floor(i * size / count) and ceil((i + 1) * size / count)."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def uneven_average(c: OpContext, x: ir.Value, sizes: list[int], target: list[int]) -> ir.Value:
    """Products with constant matrices of shares, first along the width, then along the height."""
    for size, count in ((sizes[1], target[1]), (sizes[0], target[0])):
        if size != count:
            shares = np.zeros((size, count), dtype=np.float32)
            for i, (begin, end) in enumerate(_windows(size, count)):
                shares[begin:end, i] = 1.0 / (end - begin)
            x = c.node("MatMul", x, c.tensor(shares))
        x = c.node("Transpose", x, perm=[0, 1, 3, 2])
    return x


def uneven_maximum(c: OpContext, x: ir.Value, sizes: list[int], target: list[int]) -> ir.Value:
    """The largest element of slices, first along the height, then along the width."""
    for axis, size, count in ((2, sizes[0], target[0]), (3, sizes[1], target[1])):
        at = c.int64([axis])
        parts = []
        for begin, end in _windows(size, count):
            piece = c.node("Slice", x, c.int64([begin]), c.int64([end]), at)
            parts.append(c.node("ReduceMax", piece, at, keepdims=1))
        x = parts[0] if count == 1 else c.node("Concat", *parts, axis=axis)
    return x
