"""ONNX operator -> a function on torch tensors: one table, one builder per operator.

A builder gets the node and returns `f(*tensors) -> tensor | tuple`, with every attribute and every constant shape
already read: nothing but arithmetic is left for the step. Float tensors arrive in any memory format and keep it.
Reference for every operator: the ONNX operator specification, opset 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import UnsupportedOperatorError
from fullquant.readers.refusals import Reason, Refused, refusal
from fullquant.runtime import torch_more, torch_moves
from fullquant.runtime.convolution import Convolution, explicit_pads, split_pads
from fullquant.runtime.torch_rules import (
    BUILDERS,
    Builder,
    Operation,
    Tensor,
    attribute,
    constant_input,
    ints_input,
    rule,
)

# The imports register the rules of those modules.
__all__ = ["BUILDERS", "build_operation", "check_operations", "clip_bounds", "torch_more", "torch_moves"]


_NO_RULE = Reason(
    "has no rule in PyTorch, so the model can be neither calibrated nor trained",
    "",
    "replace the layer in the model and export it again",
)


def check_operations(model: ir.Model) -> None:
    """UnsupportedOperatorError with all operators of a graph that have no rule here."""
    missing = [
        Refused(node.op_type, str(node.outputs[0].name), _NO_RULE)
        for node in model.graph
        if node.domain not in ("", "ai.onnx") or node.op_type not in BUILDERS
    ]
    if missing:
        raise refusal(Path(model.metadata_props.get("fullquant.model_file", "the model")), missing)


def build_operation(node: ir.Node) -> Operation:
    """The torch function of one node. UnsupportedOperatorError where there is no rule."""
    builder = BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if builder is None:
        raise UnsupportedOperatorError(
            f"no torch rule for operator '{node.domain}::{node.op_type}' (node {node.name!r}); "
            "the model cannot be trained or simulated with it"
        )
    return builder(node)


@rule("Conv")
def _conv(node: ir.Node) -> Operation:
    return Convolution(node)


@rule("Gemm")
def _gemm(node: ir.Node) -> Operation:
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    trans_a, trans_b = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if trans_a else a, b.t() if trans_b else b
        if c is None:
            product = a @ b
            return product if alpha == 1.0 else product * alpha
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


@rule("BatchNormalization")
def _batch_norm(node: ir.Node) -> Operation:
    epsilon = float(attribute(node, "epsilon", 1e-5))

    def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    return batch_norm


@rule("LayerNormalization")
def _layer_norm(node: ir.Node) -> Operation:
    axis, epsilon = int(attribute(node, "axis", -1)), float(attribute(node, "epsilon", 1e-5))

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), bias, epsilon)

    return layer_norm


@rule("LpNormalization")
def _lp_normalization(node: ir.Node) -> Operation:
    axis, order = int(attribute(node, "axis", -1)), float(attribute(node, "p", 2))
    return lambda x: F.normalize(x, p=order, dim=axis)


def _constant_operation(function: Any) -> Builder:
    return lambda node: function


for _name, _function in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "MatMul": torch.matmul, "Pow": torch.pow,
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Sqrt": torch.sqrt,
    "Abs": torch.abs,
    "Neg": torch.neg, "Erf": torch.erf, "Log": torch.log, "Softplus": F.softplus, "Mish": F.mish, "Floor": torch.floor,
    "Identity": lambda x: x, "Where": torch.where, "Reciprocal": torch.reciprocal, "Softsign": F.softsign,
}.items():  # fmt: skip
    BUILDERS[_name] = _constant_operation(_function)


@rule("Max", "Min")
def _extremum(node: ir.Node) -> Operation:
    pair = torch.maximum if node.op_type == "Max" else torch.minimum

    def extremum(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = pair(first, other)
        return first

    return extremum


@rule("Clip")
def _clip(node: ir.Node) -> Operation:
    low, high = clip_bounds(node)
    return lambda x, *_: torch.clamp(x, low, high)


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """(min, max) of a Clip node; minus and plus infinity where a bound is absent."""
    low, high = constant_input(node, 1), constant_input(node, 2)
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


@rule("LeakyRelu")
def _leaky_relu(node: ir.Node) -> Operation:
    slope = float(attribute(node, "alpha", 0.01))
    return lambda x: F.leaky_relu(x, slope)


@rule("Elu")
def _elu(node: ir.Node) -> Operation:
    alpha = float(attribute(node, "alpha", 1.0))
    return lambda x: F.elu(x, alpha)


@rule("PRelu")
def _prelu(node: ir.Node) -> Operation:
    return lambda x, slope: torch.where(x > 0, x, x * slope)


@rule("HardSigmoid")
def _hard_sigmoid(node: ir.Node) -> Operation:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@rule("HardSwish")
def _hard_swish(node: ir.Node) -> Operation:
    return F.hardswish


@rule("Gelu")
def _gelu(node: ir.Node) -> Operation:
    approximate = attribute(node, "approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@rule("Softmax", "LogSoftmax")
def _softmax(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", -1))
    if node.op_type == "LogSoftmax":
        return lambda x: F.log_softmax(x, axis)
    return lambda x: F.softmax(x, axis)


class _GlobalMean(torch.autograd.Function):
    """Mean over height and width. The gradient is a view of one number a channel: who adds it to another reads no more.

    PyTorch's own writes it out, in NCHW order, which channels-last memory then pays for with a transposing copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        _, _, height, width = ctx.shape
        gradient: Tensor = (g / (height * width)).expand(ctx.shape)
        return gradient


def _global_mean(x: Tensor) -> Tensor:
    if x.ndim != 4 or not (torch.is_grad_enabled() and x.requires_grad):
        return F.adaptive_avg_pool2d(x, 1)
    mean: Tensor = _GlobalMean.apply(x)  # type: ignore[no-untyped-call]
    return mean


@rule("GlobalAveragePool")
def _global_average_pool(node: ir.Node) -> Operation:
    return _global_mean


@rule("GlobalMaxPool")
def _global_max_pool(node: ir.Node) -> Operation:
    return lambda x: torch.amax(x, dim=(2, 3), keepdim=True)


@rule("MaxPool")
def _max_pool(node: ir.Node) -> Operation:
    kernel = tuple(attribute(node, "kernel_shape"))
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    dilation = tuple(attribute(node, "dilations", [1] * len(kernel)))
    ceil_mode = bool(attribute(node, "ceil_mode", 0))
    padding, extra = split_pads(explicit_pads(node, len(kernel)))

    def max_pool(x: Tensor) -> Tensor:
        if extra is not None:
            x = F.pad(x, extra, value=-math.inf)
        return F.max_pool2d(x, kernel, stride, tuple(padding), dilation, ceil_mode)

    return max_pool


@rule("AveragePool")
def _average_pool(node: ir.Node) -> Operation:
    kernel = tuple(attribute(node, "kernel_shape"))
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    ceil_mode = bool(attribute(node, "ceil_mode", 0))
    include = bool(attribute(node, "count_include_pad", 0))
    padding, extra = split_pads(explicit_pads(node, len(kernel)))

    def average_pool(x: Tensor) -> Tensor:
        if extra is None:
            return F.avg_pool2d(x, kernel, stride, tuple(padding), ceil_mode, include)
        padded = F.avg_pool2d(F.pad(x, extra), kernel, stride, 0, ceil_mode, True)
        if include:
            return padded
        # Asymmetric padding outside the count: divide by the share of each window that lies inside the image.
        inside = F.pad(torch.ones_like(x[:1, :1]), extra)
        return padded / F.avg_pool2d(inside, kernel, stride, 0, ceil_mode, True)

    return average_pool


@rule("ReduceMean", "ReduceSum", "ReduceMax")
def _reduce(node: ir.Node) -> Operation:
    axes = ints_input(node, 1, "axes")
    keep = bool(attribute(node, "keepdims", 1))
    functions: dict[str, Callable[..., Tensor]] = {
        "ReduceMean": torch.mean,
        "ReduceSum": torch.sum,
        "ReduceMax": torch.amax,
    }
    function = functions[node.op_type]

    def reduce(x: Tensor, *_: Tensor) -> Tensor:
        return function(x, dim=tuple(axes) if axes is not None else tuple(range(x.ndim)), keepdim=keep)

    return reduce
