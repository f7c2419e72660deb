"""BatchNormalization and arithmetic with constants fold where that is exact, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes.affine_to_depthwise import affine_to_depthwise
from fullquant.passes.fold_batch_norm import fold_batch_norm
from fullquant.passes.fold_scale_shift import fold_scale_shift
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

CONV = "float[N,4,6,6] x, float[6,4,3,3] w, float[6] k"


def batch_norm(channels: int, prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """gamma, beta, mean, variance of a trained normalization, one channel nearly dead."""
    rng = np.random.default_rng(seed)
    parameters = {
        "gamma": rng.normal(size=channels),
        "beta": rng.normal(size=channels),
        "mean": rng.normal(size=channels),
        "variance": rng.uniform(1e-3, 2.0, size=channels),
    }
    return {prefix + name: array.astype(np.float32) for name, array in parameters.items()}


def model_of(graph: str, **constants: object) -> ir.Model:
    model = parse(graph, **constants)  # type: ignore[arg-type]
    infer_shapes(model)
    return model


# --- BatchNormalization ------------------------------------------------------------------------------------------


@given(
    group=st.sampled_from([1, 2, 4]),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_behind_a_convolution(group: int, pads: list[int], bias: bool, epsilon: float, seed: int) -> None:
    """Always legal, with any padding: the normalization acts on the outputs."""
    inputs = "x, w, k" if bias else "x, w"
    model = model_of(
        f"g (float[N,4,6,6] x, float[8,{4 // group},3,3] w, float[8] k) => (float y) "
        f"{{ a = Conv <group = {group}, pads = {pads}> ({inputs}) "
        f"y = BatchNormalization <epsilon = {epsilon}> (a, gamma, beta, mean, variance) }}",
        **batch_norm(8, seed=seed),
    )
    assert check(fold_batch_norm, model) == 1
    assert operators(model) == ["Conv"]


def test_behind_a_padded_convolution_and_a_linear_layer() -> None:
    body = "p = Pad(x, pads)  a = Conv(p, w)  y = BatchNormalization(a, gamma, beta, mean, variance)"
    model = model_of(
        f"g ({CONV}) => (float y) {{ {body} }}",
        pads=np.int64([0, 0, 0, 1, 0, 0, 1, 0]),
        **batch_norm(6),
    )
    assert check(fold_batch_norm, model) == 1
    linear = model_of(
        "g (float[N,5] x, float[5,6] w, float[6] k) => (float y) "
        "{ a = Gemm(x, w, k)  y = BatchNormalization(a, gamma, beta, mean, variance) }",
        **batch_norm(6),
    )
    assert check(fold_batch_norm, linear) == 1
    assert operators(linear) == ["Gemm"]


@given(group=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_in_front_of_a_convolution_without_padding(group: int, seed: int) -> None:
    model = model_of(
        f"g (float[N,4,6,6] x, float[8,{4 // group},3,3] w, float[8] k) => (float y) "
        f"{{ a = BatchNormalization(x, gamma, beta, mean, variance)  y = Conv <group = {group}> (a, w, k) }}",
        **batch_norm(4, seed=seed),
    )
    assert check(fold_batch_norm, model) == 1
    assert operators(model) == ["Conv"]


def test_in_front_of_several_layers() -> None:
    branches = "b = Conv(a, w)  c = Conv(a, w, k)  y = Add(b, c)"
    model = model_of(
        f"g ({CONV}) => (float y) {{ a = BatchNormalization(x, gamma, beta, mean, variance)  {branches} }}",
        **batch_norm(4),
    )
    assert check(fold_batch_norm, model) == 1
    assert operators(model) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    "tail",
    [
        "b = GlobalAveragePool(a)  f = Flatten(b)  y = Gemm(f, v)",
        "b = AveragePool <kernel_shape = [6,6], pads = [1,1,1,1], strides = [9,9]> (a)  f = Flatten(b)  y = Gemm(f, v)",
        "f = Flatten(a)  y = Gemm(f, u)",
    ],
)
def test_through_pooling_and_flattening(tail: str) -> None:
    model = model_of(
        "g (float[N,4,6,6] x, float[4,3] v, float[144,3] u) => (float y) "
        f"{{ a = BatchNormalization(x, gamma, beta, mean, variance)  {tail} }}",
        **batch_norm(4),
    )
    assert check(fold_batch_norm, model) == 1
    assert "BatchNormalization" not in operators(model)


@pytest.mark.parametrize(
    "body",
    [
        "a = BatchNormalization(x, gamma, beta, mean, variance)  y = Conv <pads = [0,0,0,1]> (a, w)",
        "a = BatchNormalization(x, gamma, beta, mean, variance)  b = Relu(a)  y = Conv(b, w)",
        "a = BatchNormalization(x, gamma, beta, mean, variance)  b = Conv(a, w)  c = GlobalMaxPool(a)  y = Add(c, z)",
        "a = BatchNormalization(x, gamma, beta, mean, variance)  b = GlobalMaxPool(a)  y = Conv(b, w1)",
        "y = BatchNormalization(x, gamma, beta, mean, variance)",
    ],
)
def test_in_front_where_it_would_not_be_exact(body: str) -> None:
    model = model_of(f"g ({CONV}, float[6,4,1,1] w1) => (float y) {{ {body} }}", z=np.float32(1), **batch_norm(4))
    assert check(fold_batch_norm, model) == 0


def test_behind_a_convolution_that_others_read() -> None:
    model = model_of(
        f"g ({CONV}) => (float y) "
        "{ a = Conv(x, w)  b = BatchNormalization(a, gamma, beta, mean, variance)  y = Add(a, b) }",
        **batch_norm(6),
    )
    assert check(fold_batch_norm, model) == 0


def test_normalizations_that_are_no_constants() -> None:
    computed = model_of(
        "g (float[N,4,6,6] x, float[6,4,3,3] w) => (float y) { a = Conv(x, w)  m = ReduceMean <keepdims = 0> (x, axes) "
        "s = Squeeze(m)  y = BatchNormalization(a, gamma, beta, mean, variance) }",
        axes=np.int64([0, 2, 3]),
        **batch_norm(6),
    )
    node = next(n for n in computed.graph if n.op_type == "BatchNormalization")
    node.replace_input_with(1, next(n for n in computed.graph if n.op_type == "Squeeze").outputs[0])
    assert fold_batch_norm(computed) == 0
    unusable = batch_norm(6) | {"variance": np.full(6, -1, np.float32)}
    model = model_of(
        f"g ({CONV}) => (float y) {{ a = Conv(x, w)  y = BatchNormalization(a, gamma, beta, mean, variance) }}",
        **unusable,
    )
    assert fold_batch_norm(model) == 0


def test_shared_weights_are_left_to_the_others() -> None:
    model = model_of(
        "g (float[N,4,6,6] x, float[4,4,1,1] w) => (float y) "
        "{ a = Conv(x, w)  b = BatchNormalization(a, gamma, beta, mean, variance)  y = Conv(b, w) }",
        **batch_norm(4),
    )
    assert check(fold_batch_norm, model) == 1
    assert len({id(node.inputs[1]) for node in model.graph}) == 2


# --- scale and shift ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        ("Add(a, c)", (1, 6, 1, 1)),
        ("Add(c, a)", (6, 1, 1)),
        ("Sub(a, c)", (1,)),
        ("Sub(c, a)", (6, 1, 1)),
        ("Mul(a, c)", (1, 6, 1, 1)),
        ("Div(a, c)", ()),
    ],
)
def test_arithmetic_behind_a_convolution(operator: str, shape: tuple[int, ...]) -> None:
    constant = np.random.default_rng(3).uniform(0.5, 2.0, size=shape)
    model = model_of(f"g ({CONV}) => (float y) {{ a = Conv <pads = [1,1,1,1]> (x, w)  y = {operator} }}", c=constant)
    assert check(fold_scale_shift, model) == 1
    assert operators(model) == ["Conv"]


def test_a_linear_layers_bias() -> None:
    model = model_of("g (float[N,5] x, float[5,3] w, float[3] b) => (float y) { a = Gemm(x, w)  y = Add(a, b) }")
    assert check(fold_scale_shift, model) == 1
    assert len(next(iter(model.graph)).inputs) == 3


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        ("Add(a, c)", (1, 6, 4, 1)),
        ("Add(a, c)", (4,)),
        ("Mul(a, c)", (1, 1, 1, 1, 1)),
        ("Div(c, a)", ()),
        ("Add(a, a)", ()),
    ],
)
def test_arithmetic_that_is_not_per_channel(operator: str, shape: tuple[int, ...]) -> None:
    model = model_of(f"g ({CONV}) => (float y) {{ a = Conv(x, w)  y = {operator} }}", c=np.ones(shape))
    assert check(fold_scale_shift, model) == 0


def test_a_residual_is_not_a_bias() -> None:
    model = model_of(f"g ({CONV}) => (float y) {{ a = Conv(x, w)  b = Conv(x, w, k)  y = Add(a, b) }}")
    assert check(fold_scale_shift, model) == 0


def test_input_normalization() -> None:
    body = "a = Sub(x, mean)  b = Div(a, std)"
    constants = {"mean": np.float32([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1), "std": np.float32(0.25)}
    plain = model_of(f"g ({CONV}) => (float y) {{ {body}  y = Conv(b, w, k) }}", **constants)
    assert check(fold_scale_shift, plain) == 2
    padded = model_of(f"g ({CONV}) => (float y) {{ {body}  y = Conv <pads = [1,1,1,1]> (b, w) }}", **constants)
    assert check(fold_scale_shift, padded) == 1, "the subtraction would move the zeros around the image"


def test_dropout_in_downgrade_mode() -> None:
    """y = (1 - p) x through pooling, activation and flattening into the classifier."""
    tail = (
        "r = Relu(d)  m = MaxPool <kernel_shape = [2,2]> (r)  p = GlobalAveragePool(m)  f = Flatten(p)  y = Gemm(f, v)"
    )
    model = model_of(
        f"g (float[N,4,6,6] x, float[4,3] v) => (float y) {{ d = Mul(x, keep)  {tail} }}", keep=np.float32(0.8)
    )
    assert check(fold_scale_shift, model) == 1
    assert "Mul" not in operators(model)
    negative = model_of(
        f"g (float[N,4,6,6] x, float[4,3] v) => (float y) {{ d = Mul(x, keep)  {tail} }}", keep=np.float32(-1)
    )
    assert check(fold_scale_shift, negative) == 0


@pytest.mark.parametrize(
    "movement", ["Transpose <perm = [0,1,3,2]> (d)", "Reshape(d, t)", "Squeeze(d, axes)", "LeakyRelu(d)"]
)
def test_one_number_commutes_with_movement(movement: str) -> None:
    constants = {"keep": np.float32(0.8)}
    constants |= {"t": np.int64([0, 4, -1])} if "Reshape" in movement else {}
    constants |= {"axes": np.int64([3])} if "Squeeze" in movement else {}
    body = f"d = Mul(x, keep)  m = {movement}  f = Flatten(m)  y = Gemm(f, v)"
    model = model_of(f"g (float[N,4,6,1] x, float[24,3] v) => (float y) {{ {body} }}", **constants)
    assert check(fold_scale_shift, model) == 1


# --- what folds nowhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = BatchNormalization(x, gamma, beta, mean, variance)", ["Conv"]),
        ("a = BatchNormalization(x, gamma, beta, mean, variance)  b = Relu(a)  y = Tanh(b)", ["Conv", "Relu", "Tanh"]),
        ("y = Mul(x, c)", ["Conv"]),
        ("a = Sub(x, c)  b = Mul(a, c)  y = Add(b, c)", ["Conv"]),
        ("a = Mul(x, s)  y = BatchNormalization(a, gamma, beta, mean, variance)", ["Conv"]),
    ],
)
def test_a_lone_affine_map_becomes_a_depthwise_convolution(body: str, left: list[str]) -> None:
    constants = {"c": np.float32([[[1]], [[2]], [[3]], [[-4]]]), "s": np.float32(0.5), **batch_norm(4)}
    used = {
        name: array for name, array in constants.items() if name in body or (len(name) == 1 and f", {name})" in body)
    }
    model = model_of(f"g (float[N,4,6,6] x) => (float y) {{ {body} }}", **used)
    assert check(affine_to_depthwise, model) == 1
    assert operators(model) == left


@pytest.mark.parametrize(
    "body",
    ["y = Mul(x, s)", "y = Add(x, c)", "a = Mul(x, s)  y = Add(a, s)", "a = Flatten(x)  y = Mul(a, v)"],
)
def test_maps_that_stay(body: str) -> None:
    constants = {"c": np.ones((4, 1, 1), np.float32), "s": np.float32(0.5), "v": np.ones(144, np.float32)}
    used = {name: array for name, array in constants.items() if f", {name})" in body}
    assert check(affine_to_depthwise, model_of(f"g (float[N,4,6,6] x) => (float y) {{ {body} }}", **used)) == 0
