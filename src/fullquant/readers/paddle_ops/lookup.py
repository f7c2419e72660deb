"""Elements picked by indices, sorting, and pixels traded for channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def embedding(c: OpContext) -> ir.Value:
    """Rows of a table."""
    return c.node("Gather", c.input("W"), c.input("Ids"), axis=0)


def one_hot(c: OpContext) -> ir.Value:
    """1 where the last axis of the output, of `depth` elements, is at the index, else 0."""
    (depth,) = c.known_integers("depth", "depth_tensor", "")
    index = c.node("Unsqueeze", c.cast(c.input("X"), np.dtype(np.int64)), c.int64([-1]))
    return c.cast(c.node("Equal", index, c.int64(range(depth))), c.dtype("dtype") or np.dtype(np.float32))


def take_along_axis(c: OpContext) -> ir.Value:
    """One element for each index, along an axis."""
    return c.node("GatherElements", c.input("Input"), c.input("Index"), axis=c.integer("Axis", 0))


def arg_min(c: OpContext) -> ir.Value:
    """Index of the smallest element along an axis, or in the flattened tensor."""
    x, keep = c.input("X"), int(c.flag("keepdims"))
    if c.flag("flatten"):
        index = c.node("ArgMin", c.reshape(x, [-1]), axis=0, keepdims=keep)
    else:
        axis = (c.known_integers("axis", "AxisTensor", "AxisTensorList") or [-1])[0]
        index = c.node("ArgMin", x, axis=axis, keepdims=keep)
    return c.cast(index, c.dtype("dtype") or np.dtype(np.int64))


def arg_sort(c: OpContext) -> Sequence[ir.Value]:
    """All elements in order along an axis, and their indices."""
    x = c.input("X")
    axis = c.axis(c.integer("axis", -1), c.rank(x))
    count = c.int64(c.static_dims(x, axis))
    return c.nodes("TopK", x, count, outputs=2, axis=axis, largest=int(c.flag("descending")), sorted=1)


def shuffle_channel(c: OpContext) -> ir.Value:
    """Channels of several groups in turn: the axes (group, channel) of each pixel swapped."""
    return _shuffled(c, c.input("X"), c.integer("group", 1))


def channel_shuffle(c: OpContext) -> ir.Value:
    """As shuffle_channel, with a layout."""
    if c.text("data_format", "NCHW") != "NCHW":
        raise c.unsupported("layout NHWC is not read, only NCHW is", "export the model with data_format='NCHW'")
    return _shuffled(c, c.input("X"), c.integer("groups", 1))


def size(c: OpContext) -> ir.Value:
    """Number of elements."""
    return c.node("Size", c.input("Input"))


def _shuffled(c: OpContext, x: ir.Value, groups: int) -> ir.Value:
    channels, height, width = c.static_dims(x, 1, 2, 3)
    split = c.reshape(x, [-1, groups, channels // groups, height, width])
    return c.reshape(c.node("Transpose", split, perm=[0, 2, 1, 3, 4]), [-1, channels, height, width])


def pixel_unshuffle(c: OpContext) -> ir.Value:
    """Pixels become channels, in the order channel, row, column."""
    if c.text("data_format", "NCHW") != "NCHW":
        raise c.unsupported("layout NHWC is not read, only NCHW is", "export the model with data_format='NCHW'")
    x, factor = c.input("X"), c.integer("downscale_factor", 1)
    channels, height, width = c.static_dims(x, 1, 2, 3)
    rows, columns = height // factor, width // factor
    split = c.reshape(x, [-1, channels, rows, factor, columns, factor])
    moved = c.node("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return c.reshape(moved, [-1, channels * factor * factor, rows, columns])


def fill_like_batch(c: OpContext) -> ir.Value | None:
    """A constant tensor with one size taken from the input."""
    x, sizes = c.input("Input"), c.integers("shape")
    text = c.text("str_value")
    dtype = c.dtype("dtype") or np.dtype(np.float32)
    element = np.asarray(float(text) if text else c.number("value", 0.0)).astype(dtype)
    source, at = c.integer("input_dim_idx", 0), c.integer("output_dim_idx", 0)
    taken = c.node("Shape", x, start=source, end=source + 1)
    before, after = sizes[:at], sizes[at + 1 :]
    parts = [*([c.int64(before)] if before else []), taken, *([c.int64(after)] if after else [])]
    return c.node("Expand", c.tensor(element), c.node("Concat", *parts, axis=0))
