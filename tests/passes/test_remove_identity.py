"""Nodes without effect go, those that only look like it stay."""

from __future__ import annotations

import numpy as np
import pytest

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.remove_identity import remove_identity
from tests.graph.toy_models import check, operators, parse

INT = {"zero": np.zeros(8, np.int64), "shape": np.int64([0, 2, 4, 4]), "axes": np.int64([2])}
INT |= {"start": np.int64([0]), "end": np.int64([9])}
CONSTANTS = {"one": np.float32(1), "nil": np.zeros((1, 2, 1, 1), np.float32), **INT}


@pytest.mark.parametrize(
    "body",
    [
        "b = Identity(a)",
        "b = Dropout(a)",
        "b = Cast <to = 1> (a)",
        "b = Pad(a, zero)",
        "b = Concat <axis = 1> (a)",
        "b = Transpose <perm = [0,1,2,3]> (a)",
        "b = Reshape(a, shape)",
        "b = Slice(a, start, end, axes)",
        "b = Add(a, nil)",
        "b = Add(nil, a)",
        "b = Sub(a, nil)",
        "b = Mul(one, a)",
        "b = Div(a, one)",
        "b = AveragePool <kernel_shape = [1,1]> (a)",
        "b = MaxPool <kernel_shape = [1,1], strides = [1,1]> (a)",
    ],
)
def test_without_effect(body: str) -> None:
    used = {name: array for name, array in CONSTANTS.items() if name in body}
    model = parse(f"g (float[N,2,4,4] x) => (float[N,2,4,4] y) {{ a = Relu(x)  {body}  y = Tanh(b) }}", **used)
    infer_shapes(model)
    assert check(remove_identity, model) == 1
    assert operators(model) == ["Relu", "Tanh"]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("b = Cast <to = 10> (a)  c = Cast <to = 1> (b)", {}),
        ("c = Pad(a, some)", {"some": np.int64([0, 0, 1, 0, 0, 0, 0, 0])}),
        ("c = Transpose <perm = [0,1,3,2]> (a)", {}),
        ("c = Transpose(a)", {}),
        ("c = Slice(a, start, end, axes, steps)", {"start": [3], "end": [-9], "axes": [2], "steps": [-1]}),
        ("c = Sub(nil, a)", {"nil": np.float32(0)}),
        ("c = Div(one, a)", {"one": np.float32(1)}),
        ("c = Mul(a, one)", {"one": np.ones((2, 1, 1, 1, 1), np.float32)}),
        ("c = Add(a, nil)", {"nil": np.zeros((2, 1, 1, 1, 1), np.float32)}),
        ("c = MaxPool <kernel_shape = [1,1], strides = [2,2]> (a)", {}),
        ("c = AveragePool <kernel_shape = [2,2], pads = [1,1,0,0]> (a)", {}),
        ("c = GlobalAveragePool(a)", {}),
    ],
)
def test_with_effect(body: str, constants: dict[str, object]) -> None:
    model = parse(f"g (float[N,2,4,4] x) => (float y) {{ a = Abs(x)  {body}  y = Tanh(c) }}", **constants)  # type: ignore[arg-type]
    infer_shapes(model)
    assert check(remove_identity, model) == 0


def test_pooling_of_one_pixel() -> None:
    model = parse("g (float[N,2,1,1] x) => (float[N,2,1,1] y) { a = GlobalAveragePool(x)  y = Relu(a) }")
    assert check(remove_identity, model) == 1


def test_a_mask_in_use_keeps_dropout() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { a, m = Dropout(x)  c = Cast <to = 1> (m)  y = Mul(a, c) }")
    assert check(remove_identity, model) == 0


def test_the_output_keeps_its_name_and_the_border_is_kept() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { a = Relu(x)  y = Identity(a) }")
    assert check(remove_identity, model) == 1
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Identity(x) }")
    assert check(remove_identity, model) == 0
