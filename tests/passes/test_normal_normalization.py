"""Instance and group normalization as layer normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_normalization import normal_normalization
from tests.graph.toy_models import check, operators, parse


def rewrite(model: ir.Model) -> int:
    infer_shapes(model)
    return normal_normalization(model)


def test_instance_normalization() -> None:
    model = parse("g (float[N,3,4,4] x, float[3] s, float[3] b) => (float[N,3,4,4] y) "
                  "{ y = InstanceNormalization <epsilon = 0.001> (x, s, b) }")  # fmt: skip
    assert check(rewrite, model) == 1
    assert operators(model) == ["LayerNormalization", "Mul", "Add"]


def test_group_normalization_with_a_number_per_channel() -> None:
    rng = np.random.default_rng(0)
    model = parse(
        "g (float[N,6,4,4] x) => (float[N,6,4,4] y) { y = GroupNormalization <num_groups = 2> (x, s, b) }",
        s=rng.normal(size=6), b=rng.normal(size=6), opset=21,
    )  # fmt: skip
    assert check(rewrite, model) == 1
    assert operators(model) == ["Reshape", "LayerNormalization", "Reshape", "Mul", "Add"]


def test_computed_parameters_stay() -> None:
    model = parse("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { m = ReduceMean <keepdims = 0> (x, axes) "
                  "y = InstanceNormalization (x, m, m) }", axes=np.int64([0, 2, 3]))  # fmt: skip
    check(rewrite, model)
    assert "InstanceNormalization" in operators(model)
