"""Shapes that are computed from the image's, with an open batch; class tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.passes import run_passes
from fullquant.passes.fold_shape_arithmetic import fold_shape_arithmetic
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

ONE = np.int64([1])


def rewrite(model: ir.Model) -> int:
    count = 0
    while True:
        infer_shapes(model)
        found = fold_shape_arithmetic(model)
        if not found:
            return count
        count += found


def passes(model: ir.Model) -> int:
    return sum(result.count for result in run_passes(model))


def test_windows_that_multiply_the_batch() -> None:
    model = parse(
        "g (float[N,4,6,6] x) => (float[M,3,4] y) { s = Shape(x)  n = Gather(s, zero)  k = Mul(n, twelve)  "
        "u = Unsqueeze(k, axis)  t = Concat <axis = 0> (u, three, four)  y = Reshape(x, t) }",
        zero=np.int64(0), twelve=np.int64(12), axis=np.int64([0]), three=np.int64([3]), four=np.int64([4]),
    )  # fmt: skip
    assert check(rewrite, model) == 1
    assert [n.op_type for n in model.graph if n.op_type == "Reshape"] == ["Reshape"]
    (reshape,) = [n for n in model.graph if n.op_type == "Reshape"]
    assert reshape.inputs[1] is not None
    assert reshape.inputs[1].const_value is not None
    assert list(reshape.inputs[1].const_value.numpy()) == [-1, 3, 4]


def test_an_open_height_is_left_alone() -> None:
    model = parse(
        "g (float[N,4,H,6] x) => (float[K] y) { s = Shape(x)  n = Gather(s, two)  t = Unsqueeze(n, axis)  "
        "r = Concat <axis = 0> (t, rest)  z = Reshape(x, r)  y = ReduceSum <keepdims = 0> (z, both) }",
        two=np.int64(2), axis=np.int64([0]), rest=np.int64([-1]), both=np.int64([1]),
    )  # fmt: skip
    infer_shapes(model)
    assert fold_shape_arithmetic(model) == 0
    assert "Shape" in operators(model)
