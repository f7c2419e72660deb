"""Folds and fusions that transformers and hybrids need; ONNX Runtime's output stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.passes.fold_matmul_affine import fold_matmul_affine
from fullquant.passes.fuse_layer_norm import fold_layer_norm_parameters, fuse_layer_norm
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_power import normal_power
from tests.graph.toy_models import check, operators, parse

_RNG = np.random.default_rng(5)


def _normal(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _model(graph: str, **constants: object) -> ir.Model:
    model = parse(graph, **constants)  # type: ignore[arg-type]
    infer_shapes(model)
    return model


_NORM = {
    "gamma": _normal(6), "beta": _normal(6), "mean": _normal(6),
    "variance": _RNG.uniform(0.1, 2, 6).astype(np.float32),
}  # fmt: skip
_ROWS = np.array([-1, 6], np.int64)
_TOKENS = np.array([-1, 5, 6], np.int64)


def test_normalization_of_rows_of_tokens() -> None:
    """LeViT: x @ W, tokens of all images as rows, BatchNormalization, back."""
    model = _model(
        "g (float[N,5,4] x) => (float[N,5,6] y) { a = MatMul (x, w) b = Reshape (a, rows) "
        "c = BatchNormalization (b, gamma, beta, mean, variance) y = Reshape (c, tokens) }",
        w=_normal(4, 6), rows=_ROWS, tokens=_TOKENS, **_NORM,
    )  # fmt: skip
    assert check(fold_matmul_affine, model) == 1
    assert operators(model) == ["MatMul", "Add", "Reshape", "Reshape"]


@pytest.mark.parametrize("factor", [_normal(6), _normal(1, 1, 6), np.float32(0.3)], ids=["vector", "axes", "number"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_scale(factor: np.ndarray, bias: bool) -> None:
    """ConvNeXt: (x @ W + b) * gamma."""
    middle = "a = MatMul (x, w) b = Add (a, k)" if bias else "b = MatMul (x, w)"
    model = _model(
        f"g (float[N,5,4] x) => (float[N,5,6] y) {{ {middle} c = Mul (b, f) y = Relu (c) }}",
        w=_normal(4, 6), k=_normal(6), f=factor,
    )  # fmt: skip
    assert check(fold_matmul_affine, model) == 1
    assert operators(model) == (["MatMul", "Add", "Relu"] if bias else ["MatMul", "Relu"])


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul (x, w) c = Mul (a, f) d = Add (a, c) y = Relu (d)",  # the product is read twice
        "a = MatMul (x, w) b = Reshape (a, other) c = Mul (b, g) y = Relu (c)",  # the last axis is cut
        "a = MatMul (x, w) c = Mul (a, t) y = Relu (c)",  # a factor for each token
        "t2 = Transpose <perm = [0, 2, 1]> (x) a = MatMul (x, t2) c = Mul (a, five) y = Relu (c)",  # computed weight
    ],
)
def test_what_does_not_fold(body: str) -> None:
    model = _model(
        f"g (float[N,5,4] x) => (float y) {{ {body} }}",
        w=_normal(4, 6), f=_normal(6), g=_normal(3), t=_normal(5, 1), five=_normal(5),
        other=np.array([-1, 10, 3], np.int64),
    )  # fmt: skip
    assert check(fold_matmul_affine, model) == 0


def test_a_weight_that_two_products_share_keeps_its_numbers() -> None:
    model = _model(
        "g (float[N,5,4] x) => (float y) { a = MatMul (x, w) b = Mul (a, f) c = MatMul (x, w) y = Add (b, c) }",
        w=_normal(4, 6), f=_normal(6),
    )  # fmt: skip
    assert check(fold_matmul_affine, model) == 1


def _channel_norm(square: str, axis: int, *, parameters: bool = True) -> ir.Model:
    tail = "p = Mul (q, gain) y = Add (p, offset)" if parameters else "y = Relu (q)"
    return _model(
        "g (float[N,6,3,4] x) => (float[N,6,3,4] y) { m = ReduceMean <keepdims = 1> (x, axis) d = Sub (x, m) "
        f"s = {square} v = ReduceMean <keepdims = 1> (s, axis) e = Add (v, epsilon) r = Sqrt (e) "
        f"d2 = Sub (x, m) q = Div (d2, r) {tail} }}",
        axis=np.array([axis], np.int64), two=np.float32(2), epsilon=np.float32(1e-5),
        gain=_normal(6, 1, 1), offset=_normal(6, 1, 1),
    )  # fmt: skip


def _norms(model: ir.Model) -> int:
    infer_shapes(model)
    return fuse_layer_norm(model) + fold_layer_norm_parameters(model) + fold_layer_norm_parameters(model)


@pytest.mark.parametrize("square", ["Pow (d, two)", "Mul (d, d)"])
@pytest.mark.parametrize("parameters", [True, False])
def test_channel_norm(square: str, parameters: bool) -> None:
    model = _channel_norm(square, 1, parameters=parameters)
    assert check(_norms, model) == (3 if parameters else 1)
    assert operators(model) == ["Transpose", "LayerNormalization", "Transpose", *([] if parameters else ["Relu"])]


def test_a_norm_along_another_axis_is_none_of_the_channels() -> None:
    assert check(_norms, _channel_norm("Pow (d, two)", 2)) == 0


def test_numbers_for_each_pixel_stay_behind_the_norm() -> None:
    model = _channel_norm("Pow (d, two)", 1)
    model.graph.initializers["gain"].const_value = ir.tensor(_normal(1, 3, 4), name="gain")
    model.graph.initializers["gain"].shape = ir.Shape([1, 3, 4])
    assert check(_norms, model) == 1
    assert operators(model) == ["Transpose", "LayerNormalization", "Transpose", "Mul", "Add"]


@pytest.mark.parametrize(("exponent", "replaced"), [(2.0, "Mul"), (0.5, "Sqrt"), (3.0, "Pow")])
def test_powers(exponent: float, replaced: str) -> None:
    model = _model(
        "g (float[N,4] x) => (float[N,4] y) { a = Abs (x) y = Pow (a, e) }", e=np.float32(exponent)
    )  # fmt: skip
    assert check(normal_power, model) == (exponent != 3.0)
    assert operators(model) == ["Abs", replaced]
