"""One form per operator: arithmetic, clipping, linear layers, attributes, pooling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.graph.edit import attribute_ints, constant_value
from fullquant.passes.explicit_attributes import explicit_attributes
from fullquant.passes.global_pooling import global_pooling
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_arithmetic import normal_arithmetic
from fullquant.passes.normal_clip import normal_clip
from fullquant.passes.normal_gemm import normal_gemm
from fullquant.passes.normal_reduction import normal_reduction
from tests.graph.toy_models import check, operators, parse

# --- arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [("y = Sub(x, w)", "Add"), ("y = Div(x, w)", "Mul"), ("y = Add(w, x)", "Add"), ("y = Mul(w, x)", "Mul")],
)
def test_constants_come_second(body: str, expected: str) -> None:
    model = parse(f"g (float[N,3] x, float[3] w) => (float[N,3] y) {{ {body} }}")
    assert check(normal_arithmetic, model) == 1
    node = next(iter(model.graph))
    assert node.op_type == expected
    assert constant_value(node.inputs[1]) is not None


@pytest.mark.parametrize(
    "body", ["y = Sub(w, x)", "y = Div(w, x)", "y = Add(x, w)", "y = Mul(x, x)", "a = Relu(x)  y = Sub(x, a)"]
)
def test_other_arithmetic_stays(body: str) -> None:
    assert check(normal_arithmetic, parse(f"g (float[N,3] x, float[3] w) => (float[N,3] y) {{ {body} }}")) == 0


def test_division_by_zero_and_integers_stay() -> None:
    zero = parse("g (float[N,2] x) => (float[N,2] y) { y = Div(x, c) }", c=np.float32([1, 0]))
    assert normal_arithmetic(zero) == 0
    integer = "i = Cast <to = 7> (x)  j = Div(i, c)  y = Cast <to = 1> (j)"
    assert check(normal_arithmetic, parse(f"g (float[N,2] x) => (float y) {{ {integer} }}", c=np.int64(2))) == 0


# --- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Max(x, a)", ["Relu"]),
        ("y = Clip(x, a)", ["Relu"]),
        ("b = Relu(x)  y = Min(b, c)", ["Clip"]),
        ("b = Max(x, a)  y = Min(c, b)", ["Clip"]),
        ("b = Clip(x, a, c)  y = Relu(b)", ["Clip"]),
        ("b = Clip(x, , c)  y = Relu(b)", ["Clip"]),
        ("y = Min(x, c)", ["Clip"]),
        ("y = PRelu(x, d)", ["LeakyRelu"]),
        ("b = Relu(x)  d1 = Tanh(b)  e = Min(b, c)  y = Add(d1, e)", ["Relu", "Tanh", "Clip", "Add"]),
    ],
)
def test_clamps(body: str, expected: list[str]) -> None:
    constants = {"a": np.float32(0), "c": np.float32(0.5), "d": np.float32([0.1])}
    used = {name: array for name, array in constants.items() if f" {name}" in body.replace("(", " ").replace("  ", ";")}
    model = parse(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", **used)
    infer_shapes(model)
    assert check(normal_clip, model) >= 1
    assert operators(model) == expected


@given(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_clips_of_clips(bounds: list[float]) -> None:
    """min(max(min(max(x, a), b), c), d) for any bounds, crossing ones too."""
    names = dict(zip("abcd", (np.float32(bound) for bound in bounds), strict=True))
    body = "u = Max(x, a)  v = Min(u, b)  w = Max(v, c)  y = Min(w, d)"
    model = parse(f"g (float[N,16] x) => (float[N,16] y) {{ {body} }}", **names)
    infer_shapes(model)
    check(normal_clip, model)
    assert len(operators(model)) == 1


def test_clamps_that_stay() -> None:
    for body, constants in (
        ("y = Relu(x)", {}),
        ("y = PRelu(x, d)", {"d": np.float32([0.1, 0.2, 0.3, 0.4])}),
        ("b = ReduceMax(x)  y = Clip(x, , s)", {"s": np.float32(1)}),
    ):
        model = parse(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", **constants)
        if "Clip" in body:
            assert check(normal_clip, model) == 1, "a missing bound is filled in"
        else:
            assert check(normal_clip, model) == 0


# --- linear layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("float[5,3] w", "y = MatMul(x, w)"),
        ("float[3,5] w", "y = Gemm <transB = 1> (x, w)"),
        ("float[3,5] w, float[3] b", "y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)"),
        ("float[5,3] w, float[1,3] b", "y = Gemm(x, w, b)"),
        ("float[5,3] w, float b", "y = Gemm <beta = 0.0> (x, w, b)"),
        ("float[5,3] w, float[1] b", "y = Gemm(x, w, b)"),
    ],
)
def test_linear_layers(header: str, body: str) -> None:
    model = parse(f"g (float[N,5] x, {header}) => (float[N,3] y) {{ {body} }}")
    assert check(normal_gemm, model) == 1
    node = next(iter(model.graph))
    assert node.op_type == "Gemm"
    assert not node.attributes
    weight = constant_value(node.inputs[1])
    assert weight is not None
    assert weight.shape == (5, 3)


@pytest.mark.parametrize(
    ("graph"),
    [
        "g (float[N,5] x, float[5,3] w, float[3] b) => (float[N,3] y) { y = Gemm(x, w, b) }",
        "g (float[N,4,5] x, float[5,3] w) => (float[N,4,3] y) { y = MatMul(x, w) }",
        "g (float[N,4,4] x) => (float[N,4,4] y) { y = MatMul(x, x) }",
        "g (float[5,N] x, float[5,3] w) => (float[N,3] y) { y = Gemm <transA = 1> (x, w) }",
        "g (float[N,5] x, float[5,3] w) => (float y) { b = MatMul(x, w)  y = Gemm(x, w, b) }",
    ],
)
def test_layers_that_stay(graph: str) -> None:
    model = parse(graph)
    count = graph.count("b = MatMul")
    assert check(normal_gemm, model) == count


# --- attributes --------------------------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    stride=st.integers(1, 3),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
)
@settings(max_examples=25, deadline=None)
def test_auto_pad(size: tuple[int, int], stride: int, mode: str) -> None:
    convolution = f'Conv <auto_pad = "{mode}", strides = [{stride},{stride}]> (x, w)'
    model = parse(f"g (float[N,2,{size[0]},{size[1]}] x, float[3,2,3,2] w) => (float y) {{ y = {convolution} }}")
    assert check(explicit_attributes, model) == 1
    node = next(iter(model.graph))
    assert set(node.attributes) == {"kernel_shape", "strides", "dilations", "pads", "group"}
    assert attribute_ints(node, "kernel_shape", []) == [3, 2]


def test_same_padding_of_an_unknown_size() -> None:
    header = "g (float[N,2,H,W] x, float[3,2,3,3] w) => (float y)"
    strided = parse(f'{header} {{ y = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w) }}')
    assert check(explicit_attributes, strided, {"H": 5, "W": 6}) == 0
    dense = parse(f'{header} {{ y = Conv <auto_pad = "SAME_LOWER"> (x, w) }}')
    assert check(explicit_attributes, dense, {"H": 5, "W": 6}) == 1


def test_pooling_attributes() -> None:
    body = "a = MaxPool <kernel_shape = [2,2]> (x)  y = AveragePool <kernel_shape = [3,3]> (a)"
    model = parse(f"g (float[N,2,6,6] x) => (float y) {{ {body} }}")
    assert check(explicit_attributes, model) == 2
    maximum, average = model.graph
    assert set(maximum.attributes) == {"kernel_shape", "strides", "dilations", "pads", "ceil_mode", "storage_order"}
    assert set(average.attributes) == {"kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad"}


def test_one_dimension_stays() -> None:
    model = parse("g (float[N,2,6] x, float[3,2,3] w) => (float y) { y = Conv(x, w) }")
    assert check(explicit_attributes, model) == 0


# --- global pooling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("y = ReduceMean <keepdims = 1> (x, axes)", {"axes": np.int64([2, 3])}, ["GlobalAveragePool"]),
        ("y = ReduceMean <keepdims = 0> (x, axes)", {"axes": np.int64([-1, -2])}, ["GlobalAveragePool", "Flatten"]),
        ("y = AveragePool <kernel_shape = [4,5], strides = [1,1]> (x)", {}, ["GlobalAveragePool"]),
    ],
)
def test_means_over_the_image(body: str, constants: dict[str, object], expected: list[str]) -> None:
    model = parse(f"g (float[N,3,4,5] x) => (float y) {{ {body} }}", **constants)  # type: ignore[arg-type]
    infer_shapes(model)
    assert check(global_pooling, model) == 1
    assert operators(model) == expected


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = ReduceMean(x, axes)", {"axes": np.int64([1])}),
        ("y = ReduceMean(x)", {}),
        ("y = AveragePool <kernel_shape = [4,5], pads = [1,0,0,0]> (x)", {}),
        ("y = AveragePool <kernel_shape = [4,4]> (x)", {}),
    ],
)
def test_other_means(body: str, constants: dict[str, object]) -> None:
    model = parse(f"g (float[N,3,4,5] x) => (float y) {{ {body} }}", **constants)  # type: ignore[arg-type]
    assert check(global_pooling, model) == 0


@pytest.mark.parametrize("kind", ["ReduceL2", "ReduceSumSquare", "ReduceL1"])
def test_norms_become_sums(kind: str) -> None:
    model = parse(f"g (float[N,4,6] x) => (float[N,4,1] y) {{ y = {kind}(x, last) }}", last=np.int64([-1]))
    assert check(normal_reduction, model) == 1
    assert operators(model)[-1] in ("Sqrt", "ReduceSum")
