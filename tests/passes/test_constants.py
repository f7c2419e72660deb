"""Constant nodes become initializers; what follows from constants is computed now."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.graph.edit import constant_value
from fullquant.graph.verify import verify
from fullquant.passes import constants
from fullquant.passes.constants import constants_to_initializers, fold_constants
from tests.graph.toy_models import check, operators, parse


def test_constant_nodes() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { c = Constant <value_floats = [1.0, 2.0]> ()  y = Add(x, c) }")
    assert check(constants_to_initializers, model) == 1
    assert operators(model) == ["Add"]
    np.testing.assert_array_equal(constant_value(model.graph.initializers["c"]), np.float32([1, 2]))


def test_string_constants_are_kept() -> None:
    model = parse('g (float[N,2] x) => (float[N,2] y) { c = Constant <value_string = "a"> ()  y = Relu(x) }')
    assert constants_to_initializers(model) == 0


def test_chains_of_constants() -> None:
    model = parse(
        "g (float[N,4] x, float[2,2] w) => (float[N,4] y) "
        "{ t = Transpose(w)  s = Sqrt(t)  r = Reshape(s, shape)  y = Mul(x, r) }",
        w=np.float32([[1, 4], [9, 16]]),
        shape=np.int64([4]),
    )
    assert check(fold_constants, model) == 3
    np.testing.assert_array_equal(constant_value(model.graph.initializers["r"]), np.float32([1, 3, 2, 4]))


def test_several_outputs() -> None:
    body = "a, b = Split <num_outputs = 2> (w)  c = Add(x, a)  y = Mul(c, b)"
    model = parse(f"g (float[N,2] x, float[4] w) => (float[N,2] y) {{ {body} }}")
    assert check(fold_constants, model) == 1
    assert operators(model) == ["Add", "Mul"]


def test_shape_of_known_sizes() -> None:
    model = parse("g (float[N,6] x) => (float y) { s = Shape <start = 1> (x)  f = Cast <to = 1> (s)  y = Mul(x, f) }")
    assert check(fold_constants, model) == 2
    model = parse("g (float[N,6] x) => (float y) { s = Shape(x)  f = Cast <to = 1> (s)  y = ReduceSum(f) }")
    assert check(fold_constants, model) == 0


def test_random_numbers_and_quantization_are_kept() -> None:
    random = "r = RandomNormal <shape = [2], seed = 1.0> ()  z = Mul(r, zero)"
    model = parse(f"g (float[N,2] x) => (float[N,2] y) {{ {random}  y = Add(x, z) }}", zero=np.float32(0))
    assert fold_constants(model) == 0
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) { w = DequantizeLinear(q, s)  y = Add(x, w) }",
        q=np.int8([1, 2]),
        s=np.float32(0.5),
    )
    assert check(fold_constants, model) == 0


def test_a_constant_output_stays_computed() -> None:
    model = parse("g (float[N,2] x) => (float[1] y) { y = Neg(c) }", c=np.float32([1]))
    assert fold_constants(model) == 0
    verify(model)


def test_an_operator_without_reference_is_kept() -> None:
    model = parse("g (float[N,2] x, float[2] w) => (float[N,2] y) { a = Neg(w)  y = Add(x, a) }")
    model.graph.opset_imports["com.example"] = 1
    neg = next(iter(model.graph))
    odd = ir.Node("com.example", "Odd", neg.inputs, name="odd")
    model.graph.insert_before(neg, odd)
    odd.outputs[0].name = "odd"
    neg.replace_input_with(0, odd.outputs[0])
    assert fold_constants(model) == 0


def test_what_cannot_be_computed_is_kept() -> None:
    model = parse(
        "g (float[N,2] x, float[4] w) => (float y) { r = Reshape(w, t)  y = MatMul(x, r) }", t=np.int64([7, 1])
    )
    assert fold_constants(model) == 0


def test_a_huge_constant_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "_MAX_ELEMENTS", 10)
    model = parse("g (float[N,16] x) => (float y) { c = ConstantOfShape(s)  y = Add(x, c) }", s=np.int64([16]))
    assert check(fold_constants, model) == 0
