"""Normalization by the statistics of the input itself: over groups of channels, over the map, by the L2 norm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def _along_channels(c: OpContext, name: str, rank: int) -> ir.Value | None:
    """A vector with one number a channel as [C, 1, 1, ...]."""
    vector = c.optional(name)
    return None if vector is None else c.reshape(vector, [-1] + [1] * (rank - 2))


def group_norm(c: OpContext) -> ir.Value:
    """Every group of channels gets mean 0 and variance 1, then every channel its scale and bias.

    InstanceNormalization of [N, groups, -1]: ONNX's GroupNormalization takes one scale a group before operator set 21.
    """
    if c.text("data_layout", c.text("data_format", "NCHW")) == "NHWC":
        raise c.unsupported("layout NHWC is not read, only NCHW is", "export the model with data_format='NCHW'")
    x = c.input("X")
    rank, groups = c.rank(x), c.integer("groups", 1)
    sizes = c.static_dims(x, *range(1, rank))
    neutral = [c.tensor(np.full(groups, number, dtype=np.float32)) for number in (1, 0)]
    grouped = c.reshape(x, [0, groups, -1])
    whitened = c.node("InstanceNormalization", grouped, *neutral, epsilon=c.number("epsilon", 1e-5))
    result = c.reshape(whitened, [-1, *sizes])
    scale, bias = _along_channels(c, "Scale", rank), _along_channels(c, "Bias", rank)
    if scale is not None:
        result = c.node("Mul", result, scale)
    return result if bias is None else c.node("Add", result, bias)


def instance_norm(c: OpContext) -> ir.Value:
    """Every map gets mean 0 and variance 1, then its channel's scale and bias."""
    x = c.input("X")
    (channels,) = c.static_dims(x, 1)
    vectors = []
    for name, number in (("Scale", 1), ("Bias", 0)):
        vector = c.optional(name)
        vectors.append(c.tensor(np.full(channels, number, dtype=np.float32)) if vector is None else vector)
    return c.node("InstanceNormalization", x, *vectors, epsilon=c.number("epsilon", 1e-5))


def norm(c: OpContext) -> ir.Value:
    """x / sqrt(sum(x * x) + epsilon) along an axis; a small epsilon is there for a vector of zeros alone."""
    x, epsilon = c.input("X"), c.number("epsilon", 1e-10)
    if epsilon <= 1e-8:
        return c.node("LpNormalization", x, axis=c.integer("axis", -1), p=2)
    total = c.node("ReduceSum", c.node("Mul", x, x), c.int64([c.integer("axis", -1)]), keepdims=1)
    return c.node("Div", x, c.node("Sqrt", c.node("Add", total, c.scalar(epsilon, x))))


def p_norm(c: OpContext) -> ir.Value:
    """sum(|x|^p)^(1/p) along an axis or of all elements; p of infinity: the largest |x|."""
    x, order = c.input("X"), c.number("porder", 2.0)
    flat = c.flag("asvector")
    axes = None if flat else c.int64([c.integer("axis", -1)])
    keep = int(c.flag("keepdim"))
    if order <= 0:
        raise c.unsupported(f"the norm of order {order} is not read, only positive orders are")
    absolute = c.node("Abs", x) if order != 2.0 else c.node("Mul", x, x)
    if order in (np.inf, 1.0):
        return c.node("ReduceMax" if order == np.inf else "ReduceSum", absolute, axes, keepdims=keep)
    if order == 2.0:
        return c.node("Sqrt", c.node("ReduceSum", absolute, axes, keepdims=keep))
    total = c.node("ReduceSum", c.node("Pow", absolute, c.scalar(order, x)), axes, keepdims=keep)
    return c.node("Pow", total, c.scalar(1.0 / order, x))
