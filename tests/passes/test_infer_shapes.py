"""Shapes follow from the inputs; contradictions are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ModelError
from fullquant.graph.edit import dims
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import parse


def shapes(model: ir.Model) -> dict[str, object]:
    return {str(v.name): dims(v) for n in model.graph for v in n.outputs}


def test_names_survive_and_sizes_follow() -> None:
    model = parse(
        "g (float[N,3,8,H] x, float[4,3,3,3] w) => (float y) "
        "{ a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)  b = GlobalAveragePool(a)  y = Flatten(b) }"
    )
    assert infer_shapes(model) == 3
    assert shapes(model) == {"a": ("N", 4, 4, None), "b": ("N", 4, 1, 1), "y": ("N", 4)}
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert infer_shapes(model) == 0


def test_what_was_declared_fills_gaps_only() -> None:
    declared = "(float[N,4,wide,99] y) <float[7,9,5,7] a>"
    model = parse(f"g (float[N,3,H,W] x, float[4,3,3,3] w) => {declared} {{ a = Conv(x, w)  y = Relu(a) }}")
    infer_shapes(model)
    assert shapes(model) == {"a": ("N", 4, 5, 7), "y": ("N", 4, "wide", 99)}


def test_invented_names_are_dropped() -> None:
    model = parse("g (float[N,3,H,W] x, float[4,3,3,3] w) => (float[N,4,unk__0,unk__1] y) { y = Conv(x, w) }")
    assert infer_shapes(model) == 1
    assert shapes(model) == {"y": ("N", 4, None, None)}


def test_constants_are_used_and_large_ones_are_not_needed() -> None:
    model = parse(
        "g (float[N,6] x, float[6,2000] w) => (float y) { a = MatMul(x, w)  y = Reshape(a, shape) }",
        shape=np.int64([0, 40, 50]),
    )
    infer_shapes(model)
    assert shapes(model)["y"] == ("N", 40, 50)


def test_contradictions_are_refused() -> None:
    model = parse("g (float[N,3,8,8] x, float[5,2] w) => (float y) { a = Relu(x)  y = MatMul(a, w) }")
    with pytest.raises(ModelError, match=r"contradict each other.*MatMul"):
        infer_shapes(model)
