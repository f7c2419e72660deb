"""Each operator rule: the written program, run by Paddle Inference, computes what ONNX Runtime computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ExportError
from fullquant.formats.framework_pb2 import ProgramDesc
from fullquant.runtime.sessions import open_session
from fullquant.writers import paddle_ops
from fullquant.writers.program_desc import build_paddle, write_paddle
from tests import graphs

needs_paddle = pytest.mark.skipif(
    importlib.util.find_spec("paddle") is None, reason="Paddle Inference is the oracle (pip install paddlepaddle)"
)
rng = np.random.default_rng(5)
IMAGE = ("N", 4, 6, 7)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node with input x, its constants in order, and what is fed."""

    op: str
    constants: list[np.ndarray] = field(default_factory=list)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int | str, ...] = IMAGE
    first: bool = True  # x is the first input
    positive: bool = False
    outputs: int = 1
    expect: str = ""  # Paddle operators that must be there
    skip: int | None = None  # an input left out: its position
    compare: bool = False  # the first input is x > 0
    cast: bool = False  # the results are not float32: they are cast

    def model(self) -> ir.Model:
        names = [f"c{k}" for k in range(len(self.constants))]
        inputs = ["x", *names] if self.first else [*names, "x"]
        if self.skip is not None:
            inputs.insert(self.skip, "")
        outputs = ["y"] if self.outputs == 1 else [f"part{k}" for k in range(self.outputs)]
        before: list[Any] = []
        if self.compare:
            before = [("Greater", ["x", "zero"], ["positive"], {})]
            inputs = ["positive", *(inputs if self.op == "Where" else names)]
        if self.op == "Mod":
            before = [("Cast", ["x"], ["whole"], {"to": 7})]
            inputs = ["whole", *names]
        made = [f"{name}.raw" for name in outputs] if self.cast else outputs
        nodes: list[Any] = [(self.op, inputs, made, self.attributes)]
        if self.cast:
            nodes += [("Cast", [raw], [name], {"to": 1}) for raw, name in zip(made, outputs, strict=True)]
        if self.outputs > 1:
            nodes.append(("Concat", outputs[::-1], ["y"], {"axis": 1}))
        constants = dict(zip(names, self.constants, strict=True))
        if self.compare:
            constants["zero"] = np.float32(0)
        return graphs.graph([*before, *nodes], constants, input_shape=self.shape)

    def feed(self) -> np.ndarray:
        x = 3 * normal(*(2 if size == "N" else int(size) for size in self.shape))
        return np.abs(x) + np.float32(0.1) if self.positive else x


PADS = {"kernel_shape": [3, 3]}
CASES = {
    "conv": Case("Conv", [normal(5, 4, 3, 3), normal(5)], {"pads": [1, 1, 1, 1]}, expect="conv2d elementwise_add"),
    "conv without bias": Case("Conv", [normal(5, 4, 3, 3)], {"strides": [2, 1]}, expect="conv2d"),
    "conv asymmetric": Case("Conv", [normal(5, 4, 3, 3), normal(5)], {"pads": [0, 1, 2, 0], "strides": [2, 2]}),
    "conv dilated": Case("Conv", [normal(4, 4, 3, 3)], {"dilations": [2, 1], "pads": [2, 2, 2, 2]}),
    "conv valid": Case("Conv", [normal(4, 4, 3, 3)], {"auto_pad": "VALID"}),
    "conv grouped": Case("Conv", [normal(6, 2, 3, 3), normal(6)], {"group": 2}, expect="conv2d elementwise_add"),
    "conv depthwise": Case(
        "Conv", [normal(4, 1, 3, 3), normal(4)], {"group": 4}, expect="depthwise_conv2d elementwise_add"
    ),
    "conv depthwise x2": Case("Conv", [normal(8, 1, 3, 3)], {"group": 4}, expect="depthwise_conv2d"),
    "gemm": Case("Gemm", [normal(6, 5), normal(5)], shape=("N", 6), expect="matmul_v2 elementwise_add"),
    "gemm transposed": Case("Gemm", [normal(5, 6), normal(5)], {"transB": 1}, shape=("N", 6)),
    "gemm without bias": Case("Gemm", [normal(6, 5)], shape=("N", 6), expect="matmul_v2"),
    "matmul": Case("MatMul", [normal(7, 5)], expect="matmul_v2"),
    "matmul left": Case("MatMul", [normal(5, 6)], first=False, shape=("N", 4, 6, 7)),
    "batch normalization": Case(
        "BatchNormalization", [normal(4), normal(4), normal(4), np.abs(normal(4)) + 1], {"epsilon": 1e-3}
    ),
    "layer normalization": Case("LayerNormalization", [normal(7), normal(7)], {"axis": -1}),
    "layer normalization 2": Case("LayerNormalization", [normal(6, 7)], {"axis": 2, "epsilon": 1e-3}),
    "normalized vectors": Case("LpNormalization", [], {"axis": 2, "p": 2}),
    "average pool": Case("AveragePool", [], {**PADS, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "average pool with padding": Case("AveragePool", [], {**PADS, "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "average pool ceil": Case("AveragePool", [], {**PADS, "strides": [2, 2], "ceil_mode": 1}),
    "average pool asymmetric": Case("AveragePool", [], {**PADS, "pads": [0, 1, 1, 0]}),
    "average pool ceil with padding": Case(
        "AveragePool", [], {**PADS, "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    ),
    "max pool ceil without a last window": Case(
        "MaxPool", [], {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}, shape=("N", 4, 6, 9)
    ),
    "max pool": Case("MaxPool", [], {**PADS, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "max pool ceil": Case("MaxPool", [], {**PADS, "strides": [2, 2], "ceil_mode": 1}),
    "max pool asymmetric": Case("MaxPool", [], {**PADS, "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "global average pool": Case("GlobalAveragePool", expect="pool2d"),
    "global max pool": Case("GlobalMaxPool", expect="pool2d"),
    "add per channel": Case("Add", [normal(4, 1, 1)]),
    "add first": Case("Add", [normal(7)], first=False),
    "add number": Case("Add", [np.float32(1.5)]),
    "add larger constant": Case("Add", [normal(2, 4, 6, 7)], shape=(4, 1, 7)),
    "mul last axes": Case("Mul", [normal(6, 1)]),
    "sub": Case("Sub", [normal(1, 4, 1, 1)]),
    "sub from": Case("Sub", [normal(4, 1, 1)], first=False),
    "sub from number": Case("Sub", [np.float32(1)], first=False),
    "div": Case("Div", [np.abs(normal(7)) + 1]),
    "div number by": Case("Div", [np.float32(2)], first=False, positive=True),
    "pow": Case("Pow", [np.float32(2)]),
    "max": Case("Max", [normal(7)]),
    "min": Case("Min", [normal(4, 1, 1)], first=False),
    "relu": Case("Relu", expect="relu"),
    "relu6": Case("Clip", [np.float32(0), np.float32(6)], expect="relu6"),
    "clip to relu": Case("Clip", [np.float32(0)], expect="relu"),
    "clip": Case("Clip", [np.float32(-1), np.float32(2)], expect="clip"),
    "clip above": Case("Clip", [np.float32(2)], skip=1, expect="clip"),
    "leaky relu": Case("LeakyRelu", [], {"alpha": 0.2}),
    "leaky relu default": Case("LeakyRelu"),
    "elu": Case("Elu", [], {"alpha": 0.7}),
    "prelu": Case("PRelu", [normal(4, 1, 1)]),
    "prelu of one": Case("PRelu", [normal(1)]),
    "sigmoid": Case("Sigmoid"),
    "tanh": Case("Tanh"),
    "hard sigmoid": Case("HardSigmoid", [], {"alpha": 1 / 6}, expect="hard_sigmoid"),
    "hard swish": Case("HardSwish", expect="hard_swish"),
    "mish": Case("Mish"),
    "gelu": Case("Gelu"),
    "gelu tanh": Case("Gelu", [], {"approximate": "tanh"}),
    "softmax": Case("Softmax"),
    "softmax over channels": Case("Softmax", [], {"axis": 1}),
    "log softmax": Case("LogSoftmax", [], {"axis": -1}),
    "abs": Case("Abs"),
    "ceil": Case("Ceil"),
    "floor": Case("Floor"),
    "erf": Case("Erf"),
    "exp": Case("Exp"),
    "log": Case("Log", positive=True),
    "neg": Case("Neg"),
    "sqrt": Case("Sqrt", positive=True),
    "reciprocal": Case("Reciprocal", positive=True),
    "identity": Case("Identity"),
    "reduce mean": Case("ReduceMean", [ints(2, 3)], {"keepdims": 1}),
    "reduce mean flat": Case("ReduceMean", [ints(-1, -2)], {"keepdims": 0}),
    "reduce max": Case("ReduceMax", [ints(1)]),
    "reduce min": Case("ReduceMin", [ints(3)], {"keepdims": 0}),
    "reduce sum": Case("ReduceSum", [ints(1, 2)]),
    "reduce all": Case("ReduceMean", [], {"keepdims": 1}),
    "reduce all to a number": Case("ReduceSum", [], {"keepdims": 0}),
    "reduce all axes": Case("ReduceMax", [ints(0, 1, 2, 3)], {"keepdims": 0}),
    "reduce prod of all": Case("ReduceProd", [], {"keepdims": 0}),
    "reduce nothing": Case("ReduceSum", [ints()], {"noop_with_empty_axes": 1}),
    "reshape": Case("Reshape", [ints(0, -1)]),
    "reshape in place": Case("Reshape", [ints(-1, 2, 2, 42)]),
    "flatten": Case("Flatten", expect="flatten_contiguous_range"),
    "flatten 2": Case("Flatten", [], {"axis": 2}),
    "flatten -1": Case("Flatten", [], {"axis": -1}),
    "transpose": Case("Transpose", [], {"perm": [0, 2, 3, 1]}),
    "squeeze": Case("Squeeze", [ints(2, 3)], shape=("N", 4, 1, 1)),
    "unsqueeze": Case("Unsqueeze", [ints(-1, 1)], shape=("N", 4)),
    "slice": Case("Slice", [ints(1, -3), ints(3, 2**62), ints(1, -1)], expect="slice"),
    "slice with steps": Case("Slice", [ints(0, 1), ints(2**62, 6), ints(2, 3), ints(2, 3)], expect="strided_slice"),
    "slice without axes": Case("Slice", [ints(0, 1), ints(9, 3)]),
    "gather one": Case("Gather", [np.array(-1, np.int64)], {"axis": 1}, expect="slice"),
    "gather list": Case("Gather", [ints(3, 0, 3)], {"axis": 1}, expect="gather"),
    "pad channels": Case("Pad", [ints(0, 2, 0, 0, 0, 3, 0, 0)], expect="pad"),
    "pad axes": Case("Pad", [ints(1, 0, 2, 1), np.float32(0.5), ints(2, -1)]),
    "split": Case("Split", [ints(1, 3)], {"axis": 1}, outputs=2),
    "split evenly": Case("Split", [], {"axis": 1, "num_outputs": 2}, outputs=2),
    "concat": Case("Concat", [normal(2, 3, 6, 7)], {"axis": 1}, shape=(2, 4, 6, 7)),
    "expand": Case("Expand", [ints(1, 4, 6, 1)], shape=("N", 1, 6, 7)),
    "expand by an axis": Case("Expand", [ints(3, 1, 4, 6, 7)], shape=(2, 1, 6, 7)),
    "cast": Case("Cast", [], {"to": 1}),
}
ROI, FIXED = np.zeros(0, np.float32), (2, 4, 6, 7)
SCALES = [ROI, np.array([1, 1, 2, 1.5], np.float32)]
SIZES = [ROI, ROI, ints(2, 4, 9, 5)]
LINEAR, CUBIC = {"mode": "linear"}, {"mode": "cubic", "cubic_coeff_a": -0.75}
CORNERS = {"coordinate_transformation_mode": "align_corners"}
FLOOR = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
BOOLEAN = np.random.default_rng(1).uniform(size=(4, 6, 7)) > 0.5
CASES |= {
    "conv transposed": Case(
        "ConvTranspose", [normal(4, 5, 3, 3), normal(5)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    ),
    "conv transposed more": Case(
        "ConvTranspose", [normal(4, 3, 3, 2)], {"strides": [2, 1], "group": 2, "output_padding": [1, 0]}
    ),
    "conv transposed uneven": Case("ConvTranspose", [normal(4, 5, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "instance normalization": Case("InstanceNormalization", [normal(4), normal(4)], {"epsilon": 1e-3}),
    "resize nearest": Case("Resize", SCALES, FLOOR, expect="nearest_interp_v2"),
    "resize nearest to size": Case("Resize", SIZES, FLOOR, shape=FIXED),
    "resize linear": Case("Resize", SCALES, LINEAR, expect="bilinear_interp_v2"),
    "resize linear to size": Case("Resize", SIZES, LINEAR, shape=FIXED),
    "resize linear corners": Case("Resize", SIZES, {**LINEAR, **CORNERS}, shape=FIXED),
    "resize linear asymmetric": Case("Resize", SIZES, {**FLOOR, **LINEAR}, shape=FIXED),
    "resize cubic": Case("Resize", SCALES, CUBIC, expect="bicubic_interp_v2"),
    "resize cubic corners": Case("Resize", SIZES, {**CUBIC, **CORNERS}, shape=FIXED),
    "argmax": Case("ArgMax", [], {"axis": 1, "keepdims": 0}, cast=True),
    "argmax kept": Case("ArgMax", [], {"axis": -1}, cast=True),
    "argmin": Case("ArgMin", [], {"axis": 2, "keepdims": 0}, cast=True),
    "top 3": Case("TopK", [ints(3)], {"axis": 1}, outputs=2, cast=True),
    "last 2": Case("TopK", [ints(2)], {"axis": -1, "largest": 0}, outputs=2, cast=True),
    "gather elements": Case("GatherElements", [np.arange(16).reshape(2, 1, 2, 4) % 4 - 1], {"axis": 1}, shape=FIXED),
    "cumulated": Case("CumSum", [np.array(1, np.int64)]),
    "cumulated reverse": Case("CumSum", [np.array(-1, np.int64)], {"reverse": 1, "exclusive": 1}),
    "lower triangle": Case("Trilu", [np.array(1, np.int64)], {"upper": 0}),
    "upper triangle": Case("Trilu"),
    "tile": Case("Tile", [ints(1, 2, 1, 3)]),
    "depth to space": Case("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    "softplus": Case("Softplus"),
    "softsign": Case("Softsign"),
    "sin": Case("Sin"),
    "cos": Case("Cos"),
    "sign": Case("Sign"),
    "round": Case("Round"),
    "mod": Case("Mod", [ints(3)], cast=True),
    "reduce prod": Case("ReduceProd", [ints(1)], {"keepdims": 0}),
    "reduce prod kept": Case("ReduceProd", [ints(2, 3)]),
    "equal": Case("Equal", [np.zeros((4, 1, 1), np.float32)], cast=True),
    "less": Case("Less", [normal(4, 1, 1)], cast=True),
    "less or equal": Case("LessOrEqual", [normal(4, 6, 7)], cast=True),
    "greater": Case("Greater", [normal(7)], cast=True),
    "greater or equal": Case("GreaterOrEqual", [normal(4, 1, 1)], cast=True),
    "where": Case("Where", [normal(2, 4, 6, 7)], shape=FIXED, compare=True),
    "where number": Case("Where", [np.float32(-3)], shape=FIXED, compare=True),
    "where number, free batch": Case("Where", [np.float32(-3)], compare=True),
    "resize axes": Case("Resize", [ROI, ROI, ints(9, 5)], {**LINEAR, "axes": [2, 3]}),
    "pad edge of a volume": Case(
        "Pad", [ints(0, 0, 1, 1, 2, 0, 0, 0, 3, 1)], {"mode": "edge"}, shape=("N", 2, 3, 6, 7), expect="pad3d"
    ),
    "not": Case("Not", compare=True, cast=True),
    "pad reflect": Case("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}, expect="unsqueeze2 pad3d squeeze2"),
    "pad edge": Case("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "edge"}),
    "slice backwards": Case("Slice", [ints(-1), ints(-9), ints(3), ints(-1)], expect="strided_slice"),
    "slice backwards by 2": Case("Slice", [ints(4, 0), ints(0, 9), ints(2, 3), ints(-2, 2)]),
    **{name.lower(): Case(name, [BOOLEAN], compare=True, cast=True) for name in ("And", "Or", "Xor")},
}


@needs_paddle
@pytest.mark.parametrize("name", CASES)
def test_paddle_computes_what_onnx_means(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.feed()
    write_paddle(model, None, {}, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    session = open_session(tmp_path / "m.pdmodel", "paddle", threads=1)
    assert (session.input_names, session.output_names) == (("x",), ("y",))
    (actual,) = session.run({"x": x})
    expected = graphs.run_onnxruntime(model, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.expect])
def test_operators_that_are_chosen(name: str) -> None:
    case = CASES[name]
    program = build_paddle(case.model(), None, {}).desc
    assert _types(program)[1:-1] == case.expect.split()


def test_every_rule_has_a_case() -> None:
    # Shape stands in front of Expand alone: tests/transformers writes and runs both.
    assert {case.op for case in CASES.values()} == set(paddle_ops.supported_operators()) - {"Shape"}


def _types(program: ProgramDesc) -> list[str]:
    return [op.type for op in program.blocks[0].ops]


REFUSED = {
    "unknown": (Case("Asinh"), "no Paddle operator"),
    "auto_pad": (Case("Conv", [normal(4, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}), "auto_pad SAME_UPPER"),
    "1-D convolution": (Case("Conv", [normal(4, 4, 3)], shape=("N", 4, 9)), "two-dimensional"),
    "alpha": (Case("Gemm", [normal(6, 5)], {"alpha": 2.0}, shape=("N", 6)), "alpha"),
    "scalar bias": (Case("Gemm", [normal(6, 5), normal(1)], shape=("N", 6)), "bias has 1 elements"),
    "pool indices": (Case("MaxPool", [], PADS, outputs=2), "one output"),
    "dilated pool": (Case("MaxPool", [], {**PADS, "dilations": [2, 2]}), "dilations"),
    "ceil on one axis": (
        Case("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 3], "ceil_mode": 1}, shape=("N", 4, 7, 6)),
        "along one axis",
    ),
    "table of indices": (Case("Gather", [np.zeros((2, 2), np.int64)], {"axis": 1}), "constant indices"),
    "reflection": (Case("Pad", [ints(0, 1, 1, 1, 0, 1, 1, 1)], {"mode": "reflect"}), "mode reflect"),
    "resize": (Case("Resize", SCALES, {"mode": "nearest"}), "mode nearest, half_pixel, round_prefer_floor"),
    "resize to a point": (Case("Resize", [ROI, ROI, ints(2, 4, 1, 1)], LINEAR, shape=FIXED), "first pixel"),
    "last index": (Case("ArgMax", [], {"select_last_index": 1}, cast=True), "first of equal"),
    "depth first": (Case("DepthToSpace", [], {"blocksize": 2}), "mode DCR"),
    "uneven split": (Case("Split", [], {"axis": 1, "num_outputs": 3}, outputs=3), "evenly"),
    "three operands": (Case("Max", [normal(7), normal(7)]), "two inputs"),
    "prelu of pixels": (Case("PRelu", [normal(6, 7)]), "slope"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_operator_node_and_remedy(name: str) -> None:
    case, said = REFUSED[name]
    with pytest.raises(ExportError) as error:
        build_paddle(case.model(), None, {})
    text = str(error.value)
    assert f"'{case.op}' (node '{case.op}_0')" in text
    assert said in text
    assert "; " in text
    assert "\n" not in text


def test_a_shape_computed_at_run_time_is_refused() -> None:
    two_unknown = ("N", "C", 3)
    model = graphs.graph([("Reshape", ["x", "s"], ["y"], {})], {"s": ints(0, -1, 1)}, input_shape=two_unknown)
    shape = next(iter(model.graph)).inputs[1]
    assert shape is not None
    shape.const_value = None
    model.graph.initializers.pop("s")
    model.graph.inputs.append(shape)
    with pytest.raises(ExportError, match=r"'Reshape' \(node 'Reshape_0'\): .* computed at run time; give input_shape"):
        build_paddle(model, None, {})
