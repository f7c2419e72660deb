"""Arithmetic between tensors, activations, casts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext

Rule = Callable[[OpContext], ir.Value]


def _aligned(c: OpContext, small: ir.Value, rank: int, axis: int) -> ir.Value:
    """`small` with trailing axes of size 1, so that its first axis meets axis `axis` of a tensor of that rank."""
    dims = c.dims(small)
    trailing = rank - axis - len(dims)
    if trailing <= 0 or not dims:
        return small
    if None in dims:
        return c.node("Unsqueeze", small, c.int64(range(len(dims), len(dims) + trailing)))
    return c.reshape(small, [1] * axis + [dim for dim in dims if dim is not None] + [1] * trailing)


def binary(op_type: str) -> Rule:
    """Rule of an operator with two operands.

    Paddle's `axis` says which axis of the larger operand the first axis of the smaller one meets; -1 aligns the last
    axes, as ONNX does.
    """

    def rule(c: OpContext) -> ir.Value:
        x, y = c.input("X"), c.input("Y")
        axis = c.integer("axis", -1)
        if axis != -1:
            rank = max(c.rank(x), c.rank(y))
            if c.rank(y) < c.rank(x):
                y = _aligned(c, y, rank, axis)
            elif c.rank(x) < c.rank(y):
                x = _aligned(c, x, rank, axis)
        return c.node(op_type, x, y)

    return rule


def unary(op_type: str) -> Rule:
    """Rule of an operator with one operand and no attributes."""

    def rule(c: OpContext) -> ir.Value:
        return c.node(op_type, c.input("X"))

    return rule


def sum_of(c: OpContext) -> ir.Value:
    """Sum of any number of tensors of one shape."""
    total, *others = c.inputs("X")
    for other in others:
        total = c.node("Add", total, other)
    return total


def relu6(c: OpContext) -> ir.Value:
    """Clip(0, 6); old files name the upper bound."""
    x = c.input("X")
    return c.node("Clip", x, c.scalar(0.0, x), c.scalar(c.number("threshold", 6.0), x))


def clip(c: OpContext) -> ir.Value:
    """Clip with bounds from attributes or tensors. Also hard_tanh (t_min, t_max)."""
    x = c.input("X")
    bounds = []
    for tensor, attribute in (("Min", "min"), ("Max", "max")):
        bound = c.optional(tensor)
        if bound is None:
            bound = c.scalar(c.number(attribute, c.number(f"t_{attribute}", 0.0)), x)
        elif c.rank(bound) > 0:
            bound = c.reshape(bound, [])
        bounds.append(bound)
    return c.node("Clip", x, *bounds)


def leaky_relu(c: OpContext) -> ir.Value:
    """LeakyRelu."""
    return c.node("LeakyRelu", c.input("X"), alpha=c.number("alpha", 0.02))


def elu(c: OpContext) -> ir.Value:
    """Elu."""
    return c.node("Elu", c.input("X"), alpha=c.number("alpha", 1.0))


def hard_sigmoid(c: OpContext) -> ir.Value:
    """max(0, min(1, slope * x + offset)). ONNX HardSigmoid."""
    return c.node("HardSigmoid", c.input("X"), alpha=c.number("slope", 0.2), beta=c.number("offset", 0.5))


def hard_swish(c: OpContext) -> ir.Value:
    """x * clip(x + offset, 0, threshold) / scale. ONNX HardSwish is the case 3, 6, 6.

    Other constants are read as the operator's definition says; PaddlePaddle 3 ignores them, Paddle Lite refuses them.
    """
    x = c.input("X")
    offset, threshold, scale = c.number("offset", 3.0), c.number("threshold", 6.0), c.number("scale", 6.0)
    if (offset, threshold, scale) == (3.0, 6.0, 6.0):
        return c.node("HardSwish", x)
    shifted = c.node("Add", x, c.scalar(offset, x))
    gate = c.node("Clip", shifted, c.scalar(0.0, x), c.scalar(threshold, x))
    return c.node("Div", c.node("Mul", x, gate), c.scalar(scale, x))


def swish(c: OpContext) -> ir.Value:
    """x * sigmoid(beta * x)."""
    x = c.input("X")
    beta = c.number("beta", 1.0)
    inner = x if beta == 1.0 else c.node("Mul", x, c.scalar(beta, x))
    return c.node("Mul", x, c.node("Sigmoid", inner))


def mish(c: OpContext) -> ir.Value:
    """x * tanh(softplus(x)). Paddle's threshold only guards against overflow."""
    return c.node("Mish", c.input("X"))


def gelu(c: OpContext) -> ir.Value:
    """Gelu, exact or with the tanh approximation."""
    return c.node("Gelu", c.input("X"), approximate="tanh" if c.flag("approximate") else "none")


def softplus(c: OpContext) -> ir.Value:
    """log(1 + exp(beta * x)) / beta. Paddle's threshold only guards against overflow."""
    x = c.input("X")
    beta = c.number("beta", 1.0)
    if beta == 1.0:
        return c.node("Softplus", x)
    return c.node("Div", c.node("Softplus", c.node("Mul", x, c.scalar(beta, x))), c.scalar(beta, x))


def rsqrt(c: OpContext) -> ir.Value:
    """1 / sqrt(x)."""
    return c.node("Reciprocal", c.node("Sqrt", c.input("X")))


def square(c: OpContext) -> ir.Value:
    """x * x."""
    x = c.input("X")
    return c.node("Mul", x, x)


def power(c: OpContext) -> ir.Value:
    """x to a constant power."""
    x = c.input("X")
    exponent = c.optional("FactorTensor")
    return c.node("Pow", x, c.scalar(c.number("factor", 1.0), x) if exponent is None else exponent)


def prelu(c: OpContext) -> ir.Value:
    """PRelu with one slope, one per channel, or one per element of the map."""
    x, alpha = c.input("X"), c.input("Alpha")
    mode = c.text("mode", "all")
    if mode == "channel" and c.text("data_format", "NCHW") == "NHWC":
        raise c.unsupported("layout NHWC is not read, only NCHW is", "export the model with data_format='NCHW'")
    size = int(np.prod([dim for dim in c.dims(alpha) if dim is not None]))
    if mode == "all":
        slope = c.reshape(alpha, [1])
    elif mode == "channel":
        slope = c.reshape(alpha, [size] + [1] * (c.rank(x) - 2))
    else:
        slope = c.reshape(alpha, c.static_dims(x, *range(1, c.rank(x))))
    return c.node("PRelu", x, slope)


def scale(c: OpContext) -> ir.Value:
    """scale * x + bias, or scale * (x + bias). Neutral numbers leave no node behind."""
    x = c.input("X")
    bias = c.number("bias", 0.0)
    factor = c.optional("ScaleTensor")
    known = c.constant("ScaleTensor")
    number = c.number("scale", 1.0) if factor is None else None if known is None else float(known.ravel()[0])

    def multiply(value: ir.Value) -> ir.Value:
        if number == 1.0:
            return value
        if number is not None:
            return c.node("Mul", value, c.scalar(number, x))
        assert factor is not None
        return c.node("Mul", value, c.reshape(factor, []))

    def shift(value: ir.Value) -> ir.Value:
        return value if bias == 0.0 else c.node("Add", value, c.scalar(bias, x))

    return shift(multiply(x)) if c.flag("bias_after_scale", True) else multiply(shift(x))


def dropout(c: OpContext) -> ir.Value:
    """At inference: identity (upscale_in_train), or x * (1 - p) (downgrade_in_infer)."""
    if not c.flag("is_test"):
        raise c.unsupported("dropout is in training mode", "call eval() on the model before exporting it")
    x = c.input("X")
    keep = 1.0 - c.number("dropout_prob", 0.5)
    if c.text("dropout_implementation", "downgrade_in_infer") == "upscale_in_train" or keep == 1.0:
        return x
    return c.node("Mul", x, c.scalar(keep, x))


def cast(c: OpContext) -> ir.Value:
    """Another element type."""
    dtype = c.dtype("out_dtype")
    if dtype is None:
        raise c.unsupported(f"element type {c.attr('out_dtype')!r} is not known")
    return c.cast(c.input("X"), dtype)


def identity(c: OpContext) -> ir.Value:
    """The input itself."""
    return c.input("X")
