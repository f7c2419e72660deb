"""HardSigmoid and HardSwish in every form that exporters write; near misses stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.passes.fuse_hard_swish import fuse_hard_sigmoid, fuse_hard_swish
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_arithmetic import normal_arithmetic
from fullquant.passes.normal_clip import normal_clip
from tests.graph.toy_models import check, operators, parse

NUMBERS = {"three": 3.0, "six": 6.0, "sixth": 1 / 6, "nil": 0.0, "one": 1.0, "half": 0.5, "two": 2.0}
CLIP = "a = Add(x, three)  b = Clip(a, nil, six)"


def rewrite(model: ir.Model) -> int:
    infer_shapes(model)
    return normal_arithmetic(model) + normal_clip(model) + fuse_hard_sigmoid(model) + fuse_hard_swish(model)


def model_of(body: str) -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: np.float32(number) for name, number in NUMBERS.items() if name in words}
    return parse(f"g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {body} }}", **used)


@pytest.mark.parametrize(
    "body",
    [
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul(x, h)",
        "h = HardSigmoid <alpha = 0.1666667, beta = 0.5> (x)  y = Mul(h, x)",
        f"{CLIP}  c = Mul(x, b)  y = Div(c, six)",
        f"{CLIP}  c = Mul(b, x)  y = Mul(c, sixth)",
        f"{CLIP}  c = Div(b, six)  y = Mul(x, c)",
        f"{CLIP}  c = Div(x, six)  y = Mul(c, b)",
        f"{CLIP}  c = Mul(sixth, b)  y = Mul(c, x)",
        "a = Add(three, x)  r = Relu(a)  b = Min(r, six)  c = Mul(x, b)  y = Div(c, six)",
        "a = Add(x, three)  r = Max(a, nil)  b = Min(six, r)  c = Mul(x, b)  y = Div(c, six)",
    ],
)
def test_hard_swish(body: str) -> None:
    model = model_of(body)
    assert check(rewrite, model) > 0
    assert operators(model) == ["HardSwish"]


@pytest.mark.parametrize(
    "body", [f"{CLIP}  y = Div(b, six)", f"{CLIP}  y = Mul(b, sixth)", "a = Add(x, half)  y = Clip(a, nil, one)"]
)
def test_hard_sigmoid(body: str) -> None:
    model = model_of(body)
    check(rewrite, model)
    assert operators(model) == (["HardSigmoid"] if "six" in body else ["Add", "Clip"])


@pytest.mark.parametrize(
    "body",
    [
        "h = HardSigmoid <alpha = 0.2, beta = 0.5> (x)  y = Mul(x, h)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.4> (x)  y = Mul(x, h)",
        "t = Tanh(x)  h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul(t, h)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  m = Mul(x, h)  y = Add(m, h)",
        f"{CLIP}  y = Mul(x, b)",
        f"{CLIP}  c = Mul(x, b)  d = Div(c, six)  y = Add(c, d)",
        "a = Add(x, two)  b = Clip(a, nil, six)  c = Mul(x, b)  y = Div(c, six)",
        "a = Add(x, three)  b = Clip(a, one, six)  c = Mul(x, b)  y = Div(c, six)",
        "a = Sigmoid(x)  y = Mul(x, a)",
    ],
)
def test_near_misses(body: str) -> None:
    model = model_of(body)
    check(rewrite, model)
    assert "HardSwish" not in operators(model)
