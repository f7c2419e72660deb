"""Layer normalization in the forms that exporters write; near misses stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.passes.fuse_layer_norm import fold_layer_norm_parameters, fuse_layer_norm
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

MEAN = "m = ReduceMean (x, axes)  d = Sub(x, m)"
ROOT = "v = ReduceMean (q, axes)  e = Add(v, epsilon)  s = Sqrt(e)"


def rewrite(model: ir.Model) -> int:
    infer_shapes(model)
    return fuse_layer_norm(model) + fold_layer_norm_parameters(model) + fold_layer_norm_parameters(model)


def model_of(body: str, axes: list[int], shape: str) -> ir.Model:
    rng = np.random.default_rng(0)
    constants = {
        "axes": np.int64(axes), "other": np.int64([1]), "epsilon": np.float32(1e-5), "two": np.float32(2),
        "three": np.float32(3), "one": np.float32(1), "nil": np.float32(-1),
        "gain": rng.normal(size=6), "shift": rng.normal(size=6),
    }  # fmt: skip
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(f"g ({shape} x) => ({shape} y) {{ {body} }}", **{k: v for k, v in constants.items() if k in words})


@pytest.mark.parametrize(
    "body",
    [
        f"{MEAN}  q = Pow(d, two)  {ROOT}  y = Div(d, s)",
        f"{MEAN}  q = Mul(d, d)  {ROOT}  a = Div(d, s)  b = Mul(a, gain)  y = Add(b, shift)",
        f"{MEAN}  n = Sub(x, m)  q = Pow(n, two)  {ROOT}  y = Div(d, s)",
        f"{MEAN}  q = Pow(d, two)  {ROOT}  r = Reciprocal(s)  y = Mul(r, d)",
        f"{MEAN}  q = Pow(d, two)  {ROOT}  r = Div(one, s)  a = Mul(d, r)  y = Mul(a, gain)",
    ],
)
def test_last_axis(body: str) -> None:
    model = model_of(body, [-1], "float[N,5,6]")
    assert check(rewrite, model) > 0
    assert operators(model) == ["LayerNormalization"]


def test_channels_first() -> None:
    model = model_of(f"{MEAN}  q = Pow(d, two)  {ROOT}  y = Div(d, s)", [1], "float[N,3,4,6]")
    assert check(rewrite, model) > 0
    assert operators(model) == ["Transpose", "LayerNormalization", "Transpose"]


@pytest.mark.parametrize(
    "body",
    [
        f"{MEAN}  q = Pow(d, three)  {ROOT}  y = Div(d, s)",
        f"{MEAN}  q = Pow(x, two)  {ROOT}  y = Div(d, s)",
        f"{MEAN}  q = Pow(d, two)  {ROOT}  y = Div(x, s)",
        f"{MEAN}  q = Pow(d, two)  v = ReduceMean (q, other)  e = Add(v, epsilon)  s = Sqrt(e)  y = Div(d, s)",
        f"{MEAN}  q = Pow(d, two)  {ROOT}  r = Div(two, s)  y = Mul(d, r)",
    ],
)
def test_near_misses(body: str) -> None:
    model = model_of(body, [-1], "float[N,5,6]")
    infer_shapes(model)
    assert fuse_layer_norm(model) == 0
    assert "LayerNormalization" not in operators(model)
