"""GELU, Mish and Sigmoid in every form that exporters write; near misses stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.passes.fuse_activations import fuse_gelu, fuse_mish, fuse_sigmoid
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_arithmetic import normal_arithmetic
from tests.graph.toy_models import check, operators, parse

NUMBERS = {
    "root2": 2**0.5, "inverse": 0.5**0.5, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "minus": -1.0,
    "cubic": 0.044715, "slope": 0.7978845608, "near": 0.71, "nearcubic": 0.0448, "nearhalf": 0.51,
}  # fmt: skip


def rewrite(model: ir.Model) -> int:
    infer_shapes(model)
    return normal_arithmetic(model) + fuse_gelu(model) + fuse_mish(model) + fuse_sigmoid(model)


def model_of(body: str) -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: np.float32(number) for name, number in NUMBERS.items() if name in words}
    return parse(f"g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {body} }}", **used)


TANH = "i = Tanh(v)  j = Add(i, one)"


@pytest.mark.parametrize(
    ("body", "approximate"),
    [
        ("a = Div(x, root2)  e = Erf(a)  b = Add(e, one)  c = Mul(x, b)  y = Mul(c, half)", "none"),
        ("h = Mul(x, half)  a = Mul(x, inverse)  e = Erf(a)  b = Add(one, e)  y = Mul(h, b)", "none"),
        ("a = Div(x, root2)  e = Erf(a)  b = Add(e, one)  c = Mul(half, b)  y = Mul(x, c)", "none"),
        ("a = Div(x, root2)  e = Erf(a)  b = Mul(e, half)  c = Add(b, half)  y = Mul(c, x)", "none"),
        ("a = Mul(inverse, x)  e = Erf(a)  b = Add(e, one)  c = Mul(b, x)  y = Div(c, two)", "none"),
        (f"p = Pow(x, three)  q = Mul(p, cubic)  r = Add(x, q)  v = Mul(r, slope)  {TANH}  k = Mul(x, j)  "
         "y = Mul(k, half)", "tanh"),
        (f"p = Mul(x, x)  q = Mul(p, x)  r = Mul(q, cubic)  s = Add(r, x)  v = Mul(slope, s)  {TANH}  "
         "k = Mul(x, half)  y = Mul(k, j)", "tanh"),
        (f"p = Mul(x, x)  q = Mul(p, cubic)  r = Add(q, one)  s = Mul(x, slope)  v = Mul(s, r)  {TANH}  "
         "k = Mul(j, half)  y = Mul(k, x)", "tanh"),
    ],
)  # fmt: skip
def test_gelu(body: str, approximate: str) -> None:
    model = model_of(body)
    assert check(rewrite, model) > 0
    assert operators(model) == ["Gelu"]
    assert next(iter(model.graph)).attributes["approximate"].as_string() == approximate


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)", ["Mish"]),
        ("e = Exp(x)  a = Add(e, one)  s = Log(a)  t = Tanh(s)  y = Mul(t, x)", ["Mish"]),
        ("n = Neg(x)  e = Exp(n)  a = Add(e, one)  y = Div(one, a)", ["Sigmoid"]),
        ("n = Mul(x, minus)  e = Exp(n)  a = Add(one, e)  y = Reciprocal(a)", ["Sigmoid"]),
        ("n = Neg(x)  e = Exp(n)  a = Add(e, one)  y = Div(x, a)", ["Sigmoid", "Mul"]),
    ],
)
def test_mish_and_sigmoid(body: str, expected: list[str]) -> None:
    model = model_of(body)
    assert check(rewrite, model) > 0
    assert operators(model) == expected


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, near)  e = Erf(a)  b = Add(e, one)  c = Mul(x, b)  y = Mul(c, half)",
        "a = Mul(x, inverse)  e = Erf(a)  b = Add(e, two)  c = Mul(x, b)  y = Mul(c, half)",
        "a = Mul(x, inverse)  e = Erf(a)  b = Add(e, one)  c = Mul(x, b)  y = Mul(c, nearhalf)",
        "t = Relu(x)  a = Mul(x, inverse)  e = Erf(a)  b = Add(e, one)  c = Mul(t, b)  y = Mul(c, half)",
        "a = Mul(x, inverse)  e = Erf(a)  b = Add(e, one)  c = Mul(x, b)  d = Mul(c, half)  y = Add(d, e)",
        f"p = Pow(x, three)  q = Mul(p, nearcubic)  r = Add(x, q)  v = Mul(r, slope)  {TANH}  k = Mul(x, j)  "
        "y = Mul(k, half)",
        f"p = Pow(x, two)  q = Mul(p, cubic)  r = Add(x, q)  v = Mul(r, slope)  {TANH}  k = Mul(x, j)  "
        "y = Mul(k, half)",
        "s = Softplus(x)  t = Tanh(s)  a = Add(t, one)  y = Mul(x, a)",
        "r = Relu(x)  s = Softplus(r)  t = Tanh(s)  y = Mul(x, t)",
        "e = Exp(x)  a = Add(e, one)  y = Div(one, a)",
        "n = Neg(x)  e = Exp(n)  a = Add(e, two)  y = Div(one, a)",
        "n = Neg(x)  e = Exp(n)  a = Add(e, one)  y = Div(two, a)",
    ],
)
def test_near_misses(body: str) -> None:
    model = model_of(body)
    check(rewrite, model)
    assert not {"Gelu", "Mish", "Sigmoid"} & set(operators(model))
