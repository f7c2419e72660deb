"""Small graphs, one for each integer kernel, placed and calibrated; and the two executions of a placed graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fullquant.evaluation.tensors import TensorComparison, compare_tensors
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.integer import IntegerModel
from fullquant.runtime.simulator import Simulator
from tests.graph.toy_models import parse
from tests.writers.qdq_oracle import minmax

X = "float[N,6,9,9] x"
_Y = "(float[N,C,H,W] y)"


def _one(body: str, extra: str = "", shape: str = X) -> str:
    return f"g ({shape}{', ' + extra if extra else ''}) => {_Y} {{ {body} }}"


#: name -> (graph, constants)
OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (_one("y = Conv <pads = [1,1,1,1]> (x, w, b)", "float[8,6,3,3] w, float[8] b"), {}),
    "conv without bias": (_one("y = Conv <strides = [2,2]> (x, w)", "float[8,6,3,3] w"), {}),
    "conv, asymmetric pads": (
        _one("y = Conv <pads = [0,1,2,1], strides = [2,2]> (x, w, b)", "float[8,6,3,3] w, float[8] b"), {}),
    "conv, dilated": (_one("y = Conv <dilations = [2,2]> (x, w)", "float[8,6,3,3] w"), {}),
    "conv, groups": (_one("y = Conv <group = 2> (x, w, b)", "float[8,3,3,3] w, float[8] b"), {}),
    "conv, depthwise": (_one("y = Conv <group = 6, pads = [2,2,2,2]> (x, w, b)", "float[6,1,5,5] w, float[6] b"), {}),
    "conv and relu": (_one("c = Conv(x, w, b) y = Relu(c)", "float[8,6,1,1] w, float[8] b"), {}),
    "conv and clip": (
        _one("c = Conv(x, w, b) y = Clip(c, low, high)", "float[8,6,1,1] w, float[8] b"),
        {"low": np.float32(0), "high": np.float32(1.2)}),
    "gemm": ("g (float[N,20] x, float[20,7] w, float[7] b) => (float[N,7] y) { y = Gemm(x, w, b) }", {}),
    "gemm, transposed": (
        "g (float[N,20] x, float[7,20] w, float[7] b) => (float[N,7] y) { y = Gemm <transB = 1> (x, w, b) }", {}),
    "matmul and bias": (
        "g (float[N,5,20] x, float[20,7] w, float[7] b) => (float[N,5,7] y) { m = MatMul(x, w) y = Add(m, b) }", {}),
    "matmul of two tensors": (
        "g (float[N,5,20] x) => (float[N,5,5] y) { t = Transpose <perm = [0,2,1]> (x) y = MatMul(x, t) }", {}),
    "add": (_one("a = Sigmoid(x) y = Add(x, a)"), {}),
    "add and relu": (_one("a = Sigmoid(x) s = Add(x, a) y = Relu(s)"), {}),
    "add of a constant": (_one("y = Add(x, c)", "float[1,6,1,1] c"), {}),
    "sub": (_one("a = HardSwish(x) y = Sub(a, x)"), {}),
    "mul": (_one("p = GlobalAveragePool(x) a = HardSigmoid(p) y = Mul(x, a)"), {}),
    "mul by a constant": (_one("y = Mul(x, c)", "float[1,1,9,9] c"), {}),
    "div": (_one("a = Sigmoid(x) y = Div(x, a)"), {}),
    "max": (_one("a = Sigmoid(x) y = Max(x, a)"), {}),
    "min of a constant": (_one("y = Min(x, c)", "float[1,6,1,1] c"), {}),
    "prelu": (_one("y = PRelu(x, c)", "float[6,1,1] c"), {}),
    "softmax": (_one("y = Softmax <axis = 1> (x)"), {}),
    "log softmax": (_one("y = LogSoftmax <axis = -1> (x)"), {}),
    "global average": (_one("y = GlobalAveragePool(x)"), {}),
    "average pool": (_one("y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (x)"), {}),
    "average pool, padding counts": (
        _one("y = AveragePool <kernel_shape = [3,2], pads = [1,0,1,0], count_include_pad = 1> (x)"), {}),
    "average pool, asymmetric": (_one("y = AveragePool <kernel_shape = [2,2], pads = [0,0,1,1]> (x)"), {}),
    "average pool, ceil": (_one("y = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (x)"), {}),
    "mean": (_one("y = ReduceMean <keepdims = 1> (x, axes)"), {"axes": np.asarray([2, 3])}),
    "sum": (_one("y = ReduceSum <keepdims = 1> (x, axes)"), {"axes": np.asarray([1])}),
    "layer norm": (
        "g (float[N,5,32] x, float[32] w, float[32] b) => (float[N,5,32] y)"
        " { y = LayerNormalization <axis = -1> (x, w, b) }", {}),
    "abs": (_one("y = Abs(x)"), {}),
    "sin": (_one("y = Sin(x)"), {}),
    "sign": (_one("y = Sign(x)"), {}),
    "softplus": (_one("y = Softplus(x)"), {}),
    "smallest": (_one("y = ReduceMin <keepdims = 1> (x, axes)"), {"axes": np.asarray([2, 3])}),
    "slice backwards": (
        _one("y = Slice(x, starts, ends, axes, steps)"),
        {"starts": np.asarray([-1]), "ends": np.asarray([-99]), "axes": np.asarray([3]), "steps": np.asarray([-1])}),
    "reshape": (_one("y = Reshape(x, shape)"), {"shape": np.asarray([0, 3, 2, 81])}),
    "transpose": (_one("y = Transpose <perm = [0,2,3,1]> (x)"), {}),
    "flatten": ("g (float[N,6,3] x) => (float[N,18] y) { y = Flatten <axis = 1> (x) }", {}),
    "slice": (
        _one("y = Slice(x, starts, ends, axes, steps)"),
        {"starts": np.asarray([1]), "ends": np.asarray([9]), "axes": np.asarray([3]), "steps": np.asarray([2])}),
    "pad": (_one("y = Pad(x, pads)"), {"pads": np.asarray([0, 2, 0, 1, 0, 2, 1, 0])}),
    "max pool": (_one("y = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (x)"), {}),
    "global maximum": (_one("y = GlobalMaxPool(x)"), {}),
    "maximum": (_one("y = ReduceMax <keepdims = 1> (x, axes)"), {"axes": np.asarray([1])}),
    "split and concat": (
        _one("a, b = Split <axis = 1> (x, s) y = Concat <axis = 1> (b, a)"), {"s": np.asarray([2, 4])}),
    "gather": (_one("y = Gather <axis = 1> (x, index)"), {"index": np.asarray([3, 0, -1])}),
    "expand": (_one("p = GlobalAveragePool(x) y = Expand(p, shape)"), {"shape": np.asarray([1, 6, 4, 4])}),
    "tile": (_one("y = Tile(x, r)"), {"r": np.asarray([1, 1, 2, 1])}),
    "depth to space": (
        "g (float[N,8,3,3] x) => (float[N,2,6,6] y) { y = DepthToSpace <blocksize = 2, mode = \"CRD\"> (x) }", {}),
    "resize, nearest": (
        _one('y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
             " (x, , scales)"), {"scales": np.float32([1, 1, 2, 2])}),
    **{
        f"table: {call}": (_one(f"y = {call} (x)"), {})
        for call in ("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "Mish", "Elu", "LeakyRelu", "Relu", "Erf",
                     "Exp")
    },
}  # fmt: skip


@dataclass
class Placed:
    """A graph with its placement, scales and images."""

    model: ir.Model
    placement: Placement
    qparams: Mapping[str, QParams]
    images: np.ndarray

    def integer(self, **options: Any) -> IntegerModel:
        return IntegerModel(self.model, self.placement, self.qparams, **options)

    def simulated(self) -> Simulator:
        module = GraphModule(self.model, placement=self.placement, qparams=self.qparams)
        module.freeze()
        return Simulator(module)

    def compare(self, integer: IntegerModel | None = None, images: np.ndarray | None = None) -> TensorComparison:
        """All tensors that both have, simulated against integer."""
        integer = self.integer() if integer is None else integer
        x = self.images if images is None else images
        return compare_tensors(self.simulated().tensors, integer.reals, integer.placed(), [x])


def placed(model: ir.Model, target: str = "paddle_lite", *, images: np.ndarray | None = None, **options: Any) -> Placed:
    """Canonical form, placement, min-max scales from one batch; images go half beyond the calibrated range."""
    model = prepare(model)
    placement = place(model, target, PlacementOptions(**{"scale_grid": "short", **options}))
    if images is None:
        shape = [4 if not isinstance(d, int) else d for d in model.graph.inputs[0].shape or ()]
        images = np.random.default_rng(5).normal(0, 1.5, shape).astype(np.float32)
    return Placed(model, placement, minmax(placement, _values(model, images)), np.asarray(images * 1.5, np.float32))


def _values(model: ir.Model, images: np.ndarray) -> dict[str, Any]:
    """Every tensor of the float graph."""
    module = GraphModule(model)
    with torch.no_grad():
        _, kept = module(torch.from_numpy(images), keep=module.tensor_names())
    values = {name: tensor.numpy() for name, tensor in kept.items()} | {module.input_name: images}
    return values | {str(n): v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value}


def operator(name: str, target: str = "paddle_lite", **options: Any) -> Placed:
    text, constants = OPERATORS[name]
    return placed(parse(text, seed=3, **constants), target, **options)
