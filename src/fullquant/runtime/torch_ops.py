"""ONNX operator -> a function on torch tensors: one table, one builder per operator.

A builder gets the node and returns `f(*tensors) -> tensor | tuple`, with every attribute and every constant shape
already read: nothing but arithmetic is left for the step. Float tensors arrive in any memory format and keep it.
Reference for every operator: the ONNX operator specification, opset 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import UnsupportedOperatorError

Tensor = torch.Tensor
Operation = Callable[..., Any]
Builder = Callable[[ir.Node], Operation]

BUILDERS: dict[str, Builder] = {}


def _rule(*op_types: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        for op_type in op_types:
            BUILDERS[op_type] = builder
        return builder

    return register


def build_operation(node: ir.Node) -> Operation:
    """The torch function of one node. UnsupportedOperatorError where there is no rule."""
    builder = BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if builder is None:
        raise UnsupportedOperatorError(
            f"no torch rule for operator '{node.domain}::{node.op_type}' (node {node.name!r}); "
            "the model cannot be trained or simulated with it"
        )
    return builder(node)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute as a plain Python object, or the default where the node does not have it."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, tuple | list) else value


def constant_input(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """Input `index` as NumPy where it is a constant; None where it is absent. A computed one is an error."""
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    value = node.inputs[index]
    if value is None or value.const_value is None:
        name = None if value is None else value.name
        raise UnsupportedOperatorError(
            f"{node.op_type} (node {node.name!r}) needs a constant for input {name!r}, computed from the image; "
            "give Global.input_shape so that it can be folded"
        )
    return value.const_value.numpy()


def _ints(node: ir.Node, index: int, attr: str | None = None) -> list[int] | None:
    """A list of integers that is an input in newer opsets and an attribute in older ones."""
    array = constant_input(node, index)
    if array is not None:
        return [int(v) for v in np.atleast_1d(array)]
    found = attribute(node, attr) if attr else None
    return None if found is None else [int(v) for v in found]


def _split_pads(pads: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """ONNX pads [begin..., end...] -> (symmetric padding, None) or ([0...], torch pad list from the last axis)."""
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return begin, None
    flat: list[int] = []
    for b, e in zip(reversed(begin), reversed(end), strict=True):
        flat += [b, e]
    return [0] * half, flat


def _explicit_pads(node: ir.Node, rank: int) -> list[int]:
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID", ""):
        raise UnsupportedOperatorError(
            f"{node.op_type} (node {node.name!r}) has auto_pad={mode}; explicit pads are needed"
        )
    return list(attribute(node, "pads", [0] * (2 * rank)))


@_rule("Conv")
def _conv(node: ir.Node) -> Operation:
    weight = node.inputs[1]
    if weight is None or weight.shape is None or len(weight.shape) != 4:
        raise UnsupportedOperatorError(f"Conv (node {node.name!r}): only two-dimensional convolutions are supported")
    stride = tuple(attribute(node, "strides", [1, 1]))
    dilation = tuple(attribute(node, "dilations", [1, 1]))
    groups = int(attribute(node, "group", 1))
    padding, extra = _split_pads(_explicit_pads(node, 2))

    def conv(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if extra is not None:
            x = F.pad(x, extra)
        return F.conv2d(x, w, b, stride, tuple(padding), dilation, groups)

    return conv


@_rule("Gemm")
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


@_rule("BatchNormalization")
def _batch_norm(node: ir.Node) -> Operation:
    epsilon = float(attribute(node, "epsilon", 1e-5))

    def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    return batch_norm


@_rule("LayerNormalization")
def _layer_norm(node: ir.Node) -> Operation:
    axis, epsilon = int(attribute(node, "axis", -1)), float(attribute(node, "epsilon", 1e-5))

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), bias, epsilon)

    return layer_norm


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


@_rule("Max", "Min")
def _extremum(node: ir.Node) -> Operation:
    pair = torch.maximum if node.op_type == "Max" else torch.minimum

    def extremum(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = pair(first, other)
        return first

    return extremum


@_rule("Clip")
def _clip(node: ir.Node) -> Operation:
    low, high = clip_bounds(node)
    return lambda x, *_: torch.clamp(x, low, high)


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """(min, max) of a Clip node; minus and plus infinity where a bound is absent."""
    low, high = constant_input(node, 1), constant_input(node, 2)
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


@_rule("LeakyRelu")
def _leaky_relu(node: ir.Node) -> Operation:
    slope = float(attribute(node, "alpha", 0.01))
    return lambda x: F.leaky_relu(x, slope)


@_rule("Elu")
def _elu(node: ir.Node) -> Operation:
    alpha = float(attribute(node, "alpha", 1.0))
    return lambda x: F.elu(x, alpha)


@_rule("PRelu")
def _prelu(node: ir.Node) -> Operation:
    return lambda x, slope: torch.where(x > 0, x, x * slope)


@_rule("HardSigmoid")
def _hard_sigmoid(node: ir.Node) -> Operation:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@_rule("HardSwish")
def _hard_swish(node: ir.Node) -> Operation:
    return F.hardswish


@_rule("Gelu")
def _gelu(node: ir.Node) -> Operation:
    approximate = attribute(node, "approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@_rule("Softmax", "LogSoftmax")
def _softmax(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", -1))
    if node.op_type == "LogSoftmax":
        return lambda x: F.log_softmax(x, axis)
    return lambda x: F.softmax(x, axis)


@_rule("GlobalAveragePool")
def _global_average_pool(node: ir.Node) -> Operation:
    return lambda x: F.adaptive_avg_pool2d(x, 1)


@_rule("GlobalMaxPool")
def _global_max_pool(node: ir.Node) -> Operation:
    return lambda x: torch.amax(x, dim=(2, 3), keepdim=True)


@_rule("MaxPool")
def _max_pool(node: ir.Node) -> Operation:
    kernel = tuple(attribute(node, "kernel_shape"))
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    dilation = tuple(attribute(node, "dilations", [1] * len(kernel)))
    ceil_mode = bool(attribute(node, "ceil_mode", 0))
    padding, extra = _split_pads(_explicit_pads(node, len(kernel)))

    def max_pool(x: Tensor) -> Tensor:
        if extra is not None:
            x = F.pad(x, extra, value=-math.inf)
        return F.max_pool2d(x, kernel, stride, tuple(padding), dilation, ceil_mode)

    return max_pool


@_rule("AveragePool")
def _average_pool(node: ir.Node) -> Operation:
    kernel = tuple(attribute(node, "kernel_shape"))
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    ceil_mode = bool(attribute(node, "ceil_mode", 0))
    include = bool(attribute(node, "count_include_pad", 0))
    padding, extra = _split_pads(_explicit_pads(node, len(kernel)))

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


@_rule("ReduceMean", "ReduceSum", "ReduceMax")
def _reduce(node: ir.Node) -> Operation:
    axes = _ints(node, 1, "axes")
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


@_rule("Concat")
def _concat(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis"))
    return lambda *parts: torch.cat(parts, axis)


@_rule("Reshape")
def _reshape(node: ir.Node) -> Operation:
    target = _ints(node, 1)
    if target is None:
        raise UnsupportedOperatorError(f"Reshape (node {node.name!r}) has no shape")
    keep_zero = bool(attribute(node, "allowzero", 0))

    def reshape(x: Tensor, *_: Tensor) -> Tensor:
        shape = [x.shape[i] if size == 0 and not keep_zero else size for i, size in enumerate(target)]
        return x.reshape(shape)

    return reshape


@_rule("Flatten")
def _flatten(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", 1))

    def flatten(x: Tensor) -> Tensor:
        split = axis if axis >= 0 else x.ndim + axis
        return x.reshape(math.prod(x.shape[:split]), -1)

    return flatten


@_rule("Transpose")
def _transpose(node: ir.Node) -> Operation:
    order = attribute(node, "perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


@_rule("Squeeze", "Unsqueeze")
def _squeeze(node: ir.Node) -> Operation:
    axes = _ints(node, 1, "axes")
    if node.op_type == "Squeeze":
        return lambda x, *_: x.squeeze() if axes is None else x.squeeze(tuple(axes))

    def unsqueeze(x: Tensor, *_: Tensor) -> Tensor:
        rank = x.ndim + len(axes or [])
        for axis in sorted(a % rank for a in axes or []):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


@_rule("Slice")
def _slice(node: ir.Node) -> Operation:
    starts, ends = _ints(node, 1) or [], _ints(node, 2) or []
    axes = _ints(node, 3) or list(range(len(starts)))
    steps = _ints(node, 4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UnsupportedOperatorError(f"Slice (node {node.name!r}) has a negative step {steps}")

    def cut(x: Tensor, *_: Tensor) -> Tensor:
        index: list[slice] = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(start, end, step)
        return x[tuple(index)]

    return cut


@_rule("Pad")
def _pad(node: ir.Node) -> Operation:
    mode = attribute(node, "mode", "constant")
    pads, axes = _ints(node, 1) or [], _ints(node, 3)
    value = constant_input(node, 2)
    fill = 0.0 if value is None else float(value)
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in names:
        raise UnsupportedOperatorError(f"Pad (node {node.name!r}) has mode {mode!r}")

    def pad(x: Tensor, *_: Tensor) -> Tensor:
        begin, end = [0] * x.ndim, [0] * x.ndim
        half = len(pads) // 2
        for k, axis in enumerate(axes if axes is not None else range(x.ndim)):
            begin[axis], end[axis] = pads[k], pads[half + k]
        flat: list[int] = []
        for b, e in zip(reversed(begin), reversed(end), strict=True):
            flat += [b, e]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, names[mode], fill) if mode == "constant" else F.pad(x, flat, names[mode])

    return pad


@_rule("Split")
def _split(node: ir.Node) -> Operation:
    axis, sizes, count = int(attribute(node, "axis", 0)), _ints(node, 1), len(node.outputs)

    def split(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, sizes if sizes is not None else math.ceil(x.shape[axis] / count), axis)

    return split


@_rule("Expand")
def _expand(node: ir.Node) -> Operation:
    target = _ints(node, 1) or []

    def expand(x: Tensor, *_: Tensor) -> Tensor:
        return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(target)))

    return expand


@_rule("Tile")
def _tile(node: ir.Node) -> Operation:
    repeats = tuple(_ints(node, 1) or [])
    return lambda x, *_: x.repeat(repeats)


@_rule("Gather")
def _gather(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", 0))

    def gather(x: Tensor, index: Tensor) -> Tensor:
        picked = torch.where(index < 0, index + x.shape[axis], index).reshape(-1).to(torch.int64)
        shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :] if axis >= 0 else None
        taken = x.index_select(axis, picked)
        return (
            taken.reshape(shape)
            if shape is not None
            else taken.reshape(*x.shape[:axis], *index.shape, *x.shape[x.ndim + axis + 1 :])
        )

    return gather


@_rule("ArgMax")
def _arg_max(node: ir.Node) -> Operation:
    axis, keep = int(attribute(node, "axis", 0)), bool(attribute(node, "keepdims", 1))
    return lambda x: torch.argmax(x, axis, keep)


@_rule("Cast")
def _cast(node: ir.Node) -> Operation:
    kinds = {ir.DataType.FLOAT: torch.float32, ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32}
    kind = ir.DataType(int(attribute(node, "to")))
    if kind not in kinds:
        raise UnsupportedOperatorError(f"Cast (node {node.name!r}) to {kind.name}")
    return lambda x: x.to(kinds[kind])


@_rule("DepthToSpace")
def _depth_to_space(node: ir.Node) -> Operation:
    block = int(attribute(node, "blocksize"))
    if attribute(node, "mode", "DCR") != "CRD":
        raise UnsupportedOperatorError(f"DepthToSpace (node {node.name!r}): only mode CRD (pixel shuffle) is supported")
    return lambda x: F.pixel_shuffle(x, block)


@_rule("Resize")
def _resize(node: ir.Node) -> Operation:
    mode = attribute(node, "mode", "nearest")
    transform = attribute(node, "coordinate_transformation_mode", "half_pixel")
    scales, sizes = constant_input(node, 2), constant_input(node, 3)
    nearest = mode == "nearest" and transform == "asymmetric" and attribute(node, "nearest_mode", "") == "floor"
    linear = mode == "linear" and transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not (nearest or linear):
        raise UnsupportedOperatorError(f"Resize (node {node.name!r}) with mode {mode}, {transform}")
    align = None if nearest else transform == "align_corners"

    def resize(x: Tensor, *_: Any) -> Tensor:
        if sizes is not None and sizes.size:
            size = tuple(int(s) for s in sizes[2:])
        else:
            size = tuple(math.floor(n * float(s)) for n, s in zip(x.shape[2:], scales[2:], strict=True))  # type: ignore[index]
        return F.interpolate(x, size, mode="nearest" if nearest else "bilinear", align_corners=align)

    return resize
