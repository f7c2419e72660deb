"""Every torch rule against ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.errors import UnsupportedOperatorError
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.torch_ops import build_operation
from tests.graphs import graph, run_onnxruntime, small_classifier

RNG = np.random.default_rng(7)


def _array(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


POSITIVE = {"Sqrt", "Log", "Pow"}
IMAGE = ("N", 4, 9, 11)
CASES: list[tuple[str, dict[str, np.ndarray], dict[str, Any]]] = [
    ("Conv", {"w": _array(6, 4, 3, 3)}, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", {"w": _array(6, 4, 3, 3), "b": _array(6)}, {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    ("Conv", {"w": _array(4, 1, 3, 5), "b": _array(4)}, {"group": 4, "pads": [1, 4, 1, 4], "dilations": [1, 2]}),
    ("Conv", {"w": _array(8, 2, 1, 1)}, {"group": 2}),
    ("BatchNormalization", {"s": _array(4), "b": _array(4), "m": _array(4), "v": np.abs(_array(4)) + 0.1},
     {"epsilon": 1e-3}),
    ("LayerNormalization", {"s": _array(11), "b": _array(11)}, {"axis": -1}),
    ("LayerNormalization", {"s": _array(9, 11), "b": _array(9, 11)}, {"axis": 2, "epsilon": 1e-3}),
    *[(op, {"c": _array(4, 1, 1)}, {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    ("MatMul", {"w": _array(11, 5)}, {}),
    *[(op, {}, {}) for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Sqrt", "Abs", "Neg", "Erf", "Log", "Softplus", "Mish",
                              "Floor", "Identity", "Reciprocal", "Softsign", "HardSwish",
                              "GlobalAveragePool", "GlobalMaxPool")],
    ("Pow", {"c": np.float32(1.7)}, {}),
    ("Clip", {"lo": np.float32(0), "hi": np.float32(0.6)}, {}),
    ("LeakyRelu", {}, {"alpha": 0.2}), ("Elu", {}, {"alpha": 1.3}), ("PRelu", {"slope": _array(4, 1, 1)}, {}),
    ("HardSigmoid", {}, {"alpha": 0.2, "beta": 0.5}), ("HardSigmoid", {}, {"alpha": 1 / 6, "beta": 0.5}),
    ("Gelu", {}, {}), ("Gelu", {}, {"approximate": "tanh"}), ("Softmax", {}, {"axis": 1}),
    ("LogSoftmax", {}, {"axis": -1}),
    ("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
    ("AveragePool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}),
    ("AveragePool", {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("ReduceMean", {"axes": _ints(2, 3)}, {"keepdims": 1}), ("ReduceSum", {"axes": _ints(1)}, {"keepdims": 0}),
    ("ReduceMax", {"axes": _ints(-1)}, {"keepdims": 0}), ("Reshape", {"s": _ints(0, 4, -1)}, {}),
    ("Flatten", {}, {"axis": 2}),
    ("Flatten", {}, {"axis": -1}), ("Transpose", {}, {"perm": [0, 2, 3, 1]}), ("Unsqueeze", {"a": _ints(1, -1)}, {}),
    ("Slice", {"s": _ints(0, 1), "e": _ints(100, -1), "a": _ints(2, 3), "t": _ints(2, 3)}, {}),
    ("Pad", {"p": _ints(0, 1, 0, 2, 0, 0, 3, 0)}, {}),
    ("Pad", {"p": _ints(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(2.5)}, {}),
    ("Pad", {"p": _ints(0, 0, 2, 1, 0, 0, 1, 3)}, {"mode": "reflect"}), ("Expand", {"s": _ints(2, 4, 9, 11)}, {}),
    ("Tile", {"r": _ints(1, 2, 1, 1)}, {}), ("Gather", {"i": _ints(2, -1, 0)}, {"axis": 1}),
    ("Gather", {"i": np.array(-1, np.int64)}, {"axis": -2}), ("DepthToSpace", {}, {"blocksize": 2, "mode": "CRD"}),
    ("Resize", {"roi": np.zeros(0, np.float32), "sc": np.array([1, 1, 2, 2], np.float32)},
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", {"roi": np.zeros(0, np.float32), "sc": np.array([1, 1, 2, 2], np.float32)},
     {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    *[(op, {}, {}) for op in ("Ceil", "Cos", "Sin", "Sign", "Round")],
    ("ReduceMin", {"axes": _ints(1)}, {"keepdims": 0}), ("ReduceMin", {}, {}),
    ("ReduceProd", {"axes": _ints(1, -1)}, {"keepdims": 0}), ("ReduceProd", {"axes": _ints(2)}, {}),
    ("CumSum", {"a": np.array(2, np.int64)}, {}), ("CumSum", {"a": np.array(-1, np.int64)}, {"reverse": 1}),
    ("CumSum", {"a": np.array(1, np.int64)}, {"exclusive": 1, "reverse": 1}),
    ("Trilu", {"k": np.array(-1, np.int64)}, {"upper": 0}), ("Trilu", {}, {}),
    ("GatherElements", {"i": np.arange(8).reshape(1, 4, 1, 2) % 5 - 2}, {"axis": 2}),
    ("InstanceNormalization", {"s": _array(4), "b": _array(4)}, {"epsilon": 1e-3}),
    ("ConvTranspose", {"w": _array(4, 3, 3, 2), "b": _array(3)}, {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("ConvTranspose", {"w": _array(4, 3, 3, 3), "b": _array(3)}, {"strides": [3, 2], "output_padding": [2, 1]}),
    ("ConvTranspose", {"w": _array(4, 3, 3, 3)}, {"group": 2, "dilations": [2, 1], "pads": [0, 1, 2, 0]}),
    ("Slice", {"s": _ints(-1, 7), "e": _ints(-99, 0), "a": _ints(3, 2), "t": _ints(-1, -2)}, {}),
    ("Pad", {"p": _ints(0, 0, 1, 2, 0, 0, 3, 1)}, {"mode": "edge"}), ("DepthToSpace", {}, {"blocksize": 2}),
    ("Pad", {"p": _ints(0, 0, 1, 2, 0, 0, 3, 1)}, {"mode": "wrap"}),
    *[("Resize", {"roi": np.zeros(0, np.float32), "sc": np.array([1, 1, 0.7, 2.4], np.float32)}, attributes)
      for attributes in (
          {"mode": "linear"}, {"mode": "cubic"}, {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
          {"mode": "cubic", "coordinate_transformation_mode": "align_corners", "cubic_coeff_a": -0.5},
          {"mode": "nearest"}, {"mode": "nearest", "nearest_mode": "ceil"},
          {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "round_prefer_ceil"},
      )],
    ("Resize", {"roi": np.zeros(0, np.float32), "sc": np.zeros(0, np.float32), "size": _ints(5, 30)},
     {"mode": "linear", "axes": [2, 3]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "constants", "attributes"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_rule_equals_onnxruntime(op: str, constants: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    model = graph([(op, ["x", *constants], ["y"], attributes)], constants, input_shape=IMAGE)
    x = _array(1, 4, 9, 11)
    if op in POSITIVE:
        x = np.abs(x) + 0.1
    got = GraphModule(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, run_onnxruntime(model, x), rtol=1e-4, atol=2e-5)


BOOLEAN = RNG.uniform(size=(4, 9, 11)) > 0.5


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not"])
def test_comparison_and_choice(op: str) -> None:
    """Where a condition holds x, else -x."""
    condition: list[Any] = [(op, ["x", "c"], ["b"], {})]
    if op in ("And", "Or", "Xor", "Not"):
        condition = [("Greater", ["x", "zero"], ["p"], {}), (op, ["p", "c"] if op != "Not" else ["p"], ["b"], {})]
    nodes = [*condition, ("Neg", ["x"], ["n"], {}), ("Where", ["b", "x", "n"], ["y"], {})]
    constants = {"zero": np.float32(0), "c": np.round(_array(4, 1, 1)) if len(condition) == 1 else BOOLEAN}
    model = graph(nodes, constants, input_shape=IMAGE)
    x = np.round(_array(2, 4, 9, 11))
    np.testing.assert_array_equal(GraphModule(model)(torch.from_numpy(x)).numpy(), run_onnxruntime(model, x))


@pytest.mark.parametrize(("op", "attributes"), [("ArgMin", {"axis": 1}), ("ArgMax", {"axis": -1, "keepdims": 0})])
def test_indices(op: str, attributes: dict[str, Any]) -> None:
    model = graph([(op, ["x"], ["i"], attributes), ("Cast", ["i"], ["y"], {"to": 1})], {}, input_shape=IMAGE)
    x = np.round(_array(2, 4, 9, 11))  # equal elements: the first one counts
    np.testing.assert_array_equal(GraphModule(model)(torch.from_numpy(x)).numpy(), run_onnxruntime(model, x))


@pytest.mark.parametrize("attributes", [{"axis": 2}, {"axis": -1, "largest": 0}])
def test_top_k(attributes: dict[str, Any]) -> None:
    nodes = [
        ("TopK", ["x", "k"], ["v", "i"], attributes),
        ("Cast", ["i"], ["f"], {"to": 1}),
        ("Mod", ["i", "k"], ["m"], {}),
        ("Cast", ["m"], ["g"], {"to": 1}),
        ("Concat", ["v", "f", "g"], ["y"], {"axis": 1}),
    ]
    model = graph(nodes, {"k": _ints(4)}, input_shape=IMAGE)
    x = np.round(_array(2, 4, 9, 11))
    np.testing.assert_array_equal(GraphModule(model)(torch.from_numpy(x)).numpy(), run_onnxruntime(model, x))


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_gemm(attributes: dict[str, Any]) -> None:
    w = _array(5, 7) if attributes.get("transB") else _array(7, 5)
    model = graph([("Gemm", ["x", "w", "b"], ["y"], attributes)], {"w": w, "b": _array(5)}, input_shape=("N", 7))
    x = _array(3, 7)
    got = GraphModule(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, run_onnxruntime(model, x), rtol=1e-5, atol=1e-5)


def test_concat_and_split() -> None:
    nodes = [
        ("Split", ["x", "sizes"], ["a", "b"], {"axis": 1}),
        ("Concat", ["b", "a", "x"], ["y"], {"axis": 1}),
    ]
    model = graph(nodes, {"sizes": _ints(1, 3)}, input_shape=IMAGE)
    x = _array(2, 4, 9, 11)
    np.testing.assert_allclose(GraphModule(model)(torch.from_numpy(x)).numpy(), run_onnxruntime(model, x))


def test_a_whole_classifier_equals_onnxruntime() -> None:
    model = small_classifier()
    x = _array(3, 3, 8, 8)
    got = GraphModule(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, run_onnxruntime(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [("Einsum", {}, {"equation": "nchw->nhwc"}), ("Conv", {"w": _array(4, 4, 3, 3)}, {"auto_pad": "SAME_UPPER"})],
)
def test_what_has_no_rule_says_so(op: str, constants: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    model = graph([(op, ["x", *constants], ["y"], attributes)], constants, input_shape=IMAGE)
    with pytest.raises(UnsupportedOperatorError, match=op):
        GraphModule(model)


def test_keep_and_tap_name_the_tensors_of_the_graph() -> None:
    module = GraphModule(small_classifier())
    seen: list[str] = []
    x = torch.from_numpy(_array(2, 3, 8, 8))

    def tap(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        seen.append(name)
        return torch.zeros_like(tensor) if name == "logits" else None

    output, kept = module(x, keep=["logits", "se"], tap=tap)
    assert seen == ["x", *module.tensor_names()]
    assert kept["se"].shape == (2, 8, 8, 8)
    assert float(kept["logits"].abs().max()) == 0.0
    assert math.isclose(float(output[0, 0]), 0.2, rel_tol=1e-6)


def test_global_average_pool_has_the_gradient_of_the_mean_without_writing_it_out() -> None:
    node = ir.node("GlobalAveragePool", [ir.Value(name="x")])
    x = torch.randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 5, 1, 1)
    pooled = build_operation(node)(x)
    (ours,) = torch.autograd.grad((pooled * weight).sum(), x)
    (theirs,) = torch.autograd.grad((x.mean((2, 3), keepdim=True) * weight).sum(), x)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride()[2:] == (0, 0)
