"""Activations and functions that are rare in classifiers, made of common ONNX operators where that is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def selu(c: OpContext) -> ir.Value:
    """scale * x above 0, scale * alpha * (exp(x) - 1) below: an Elu times a number."""
    x = c.input("X")
    grown = c.node("Elu", x, alpha=c.number("alpha", 1.6732632423543772))
    return c.node("Mul", grown, c.scalar(c.number("scale", 1.0507009873554805), x))


def celu(c: OpContext) -> ir.Value:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)): an Elu of x / alpha, times alpha."""
    x, alpha = c.input("X"), c.number("alpha", 1.0)
    if alpha == 1.0:
        return c.node("Elu", x, alpha=1.0)
    return c.node("Mul", c.node("Elu", c.node("Mul", x, c.scalar(1.0 / alpha, x)), alpha=1.0), c.scalar(alpha, x))


def log_sigmoid(c: OpContext) -> ir.Value:
    """log(1 / (1 + exp(-x))) = -softplus(-x)."""
    return c.node("Neg", c.node("Softplus", c.node("Neg", c.input("X"))))


def tanh_shrink(c: OpContext) -> ir.Value:
    """x - tanh(x)."""
    x = c.input("X")
    return c.node("Sub", x, c.node("Tanh", x))


def soft_shrink(c: OpContext) -> ir.Value:
    """x - threshold above it, x + threshold below its negative, 0 between: x - clip(x)."""
    x, bound = c.input("X"), c.number("lambda", 0.5)
    return c.node("Sub", x, c.node("Clip", x, c.scalar(-bound, x), c.scalar(bound, x)))


def hard_shrink(c: OpContext) -> ir.Value:
    """x outside [-threshold, threshold], 0 inside."""
    x = c.input("X")
    outside = c.node("Greater", c.node("Abs", x), c.scalar(c.number("threshold", 0.5), x))
    return c.node("Where", outside, x, c.scalar(0.0, x))


def thresholded_relu(c: OpContext) -> ir.Value:
    """x above the threshold, else another number (0 unless the file gives one)."""
    x = c.input("X")
    above = c.node("Greater", x, c.scalar(c.number("threshold", 1.0), x))
    return c.node("Where", above, x, c.scalar(c.number("value", 0.0), x))


def stanh(c: OpContext) -> ir.Value:
    """scale_b * tanh(scale_a * x)."""
    x = c.input("X")
    inner = c.node("Tanh", c.node("Mul", x, c.scalar(c.number("scale_a", 0.67), x)))
    return c.node("Mul", inner, c.scalar(c.number("scale_b", 1.7159), x))


def logarithm(base: float) -> Callable[[OpContext], ir.Value]:
    """Rule of log(x) / log(base)."""

    def rule(c: OpContext) -> ir.Value:
        x = c.input("X")
        return c.node("Mul", c.node("Log", x), c.scalar(1.0 / float(np.log(base)), x))

    return rule


def log1p(c: OpContext) -> ir.Value:
    """log(1 + x)."""
    x = c.input("X")
    return c.node("Log", c.node("Add", x, c.scalar(1.0, x)))


def expm1(c: OpContext) -> ir.Value:
    """exp(x) - 1."""
    x = c.input("X")
    return c.node("Sub", c.node("Exp", x), c.scalar(1.0, x))


def log_sum_exp(c: OpContext) -> ir.Value:
    """log(sum(exp(x))) over axes; the largest element is taken out first, so that nothing overflows."""
    x = c.input("X")
    numbers = [] if c.flag("reduce_all") else c.integers("axis")
    numbers = [c.axis(axis, c.rank(x)) for axis in numbers] or list(range(c.rank(x)))
    axes, keep = c.int64(numbers), int(c.flag("keepdim", c.flag("keepdims")))
    top = c.node("ReduceMax", x, axes, keepdims=1)
    total = c.node("Log", c.node("ReduceSum", c.node("Exp", c.node("Sub", x, top)), axes, keepdims=1))
    result = c.node("Add", total, top)
    return result if keep else c.node("Squeeze", result, axes)


def maxout(c: OpContext) -> ir.Value:
    """The largest of each group of channels that lie side by side."""
    x, groups = c.input("X"), c.integer("groups", 1)
    axis = c.axis(c.integer("axis", 1), c.rank(x))
    sizes = c.static_dims(x, *range(1, c.rank(x)))
    shape = [-1, *sizes]
    split = [*shape[:axis], shape[axis] // groups, groups, *shape[axis + 1 :]]
    return c.node("ReduceMax", c.reshape(x, split), c.int64([axis + 1]), keepdims=0)
