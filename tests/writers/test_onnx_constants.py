"""Weights and biases as integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fullquant.errors import ExportError
from fullquant.numerics.qparams import QuantSpec, symmetric
from fullquant.passes import prepare
from fullquant.placement.decision import Decision, Placement
from fullquant.writers.onnx_constants import bias_integers
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from tests.graph.toy_models import parse, run
from tests.writers.qdq_models import quantized, toy
from tests.writers.qdq_oracle import evaluate


def test_a_shared_bias_has_a_scale_per_reader() -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[4,4,1,1] w0, float[4,4,1,1] w1, float[4] b) => (float y) "
        "{ a = Conv(x, w0, b)  d = Conv(x, w1, b)  c = Relu(d)  y = Add(a, c) }"
    )
    placement, qparams, inputs = quantized(prepare(model))
    built = build_onnx(model, placement, qparams)
    assert {"b.quantized", "b.quantized_1", "b.scale", "b.scale_1"} <= set(built.graph.initializers)
    np.testing.assert_allclose(run(built, inputs[0]), evaluate(model, inputs[0], placement, qparams)["y"], atol=1e-6)


def test_a_shared_weight_is_stored_once() -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[4,4,1,1] w) => (float y) { a = Conv(x, w)  b = Sigmoid(a)  y = Conv(b, w) }"
    )
    placement, qparams, inputs = quantized(prepare(model))
    built = build_onnx(model, placement, qparams)
    assert sum(name.startswith("w.") for name in built.graph.initializers) == 3
    np.testing.assert_allclose(run(built, inputs[0]), evaluate(model, inputs[0], placement, qparams)["y"], atol=1e-6)


def test_the_bias_of_a_float_layer_stays_float() -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    decisions = dict(placement.decisions)
    decisions["x"] = Decision("x", "activation", None, "stays float for this test")
    built = build_onnx(model, Placement("paddle_lite", decisions), qparams)
    assert "b0" in built.graph.initializers
    assert "b1" not in built.graph.initializers


def test_a_bias_beyond_int32_is_named(tmp_path: Path) -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    scale = qparams["w1"].scale.copy()
    scale[5] = 1e-12
    qparams["w1"] = symmetric(qparams["w1"].spec, scale)
    with pytest.raises(ExportError, match=r"'b1'.*channel 5.*int32"):
        write_onnx(model, placement, qparams, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match=r"'b1'.*too small"):
        bias_integers(model.graph.initializers["b1"], np.zeros(8, np.float32))


def test_matmul_with_a_bias_behind_it() -> None:
    """Three axes, so no Gemm: the bias is the constant of an Add."""
    model = prepare(
        parse("g (float[N,4,5] x, float[5,3] w, float[3] b) => (float y) { m = MatMul(x, w)  y = Add(m, b) }")
    )
    placement, qparams, inputs = quantized(model)
    assert placement["m"].fused
    built = build_onnx(model, placement, qparams)
    assert "b.quantized" in built.graph.initializers
    np.testing.assert_allclose(run(built, inputs[0]), evaluate(model, inputs[0], placement, qparams)["y"], atol=1e-6)


def test_computed_tensors_are_no_constants() -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    for kind, message in (("weight", "place it as an activation"), ("bias", "keep its layer float")):
        decisions = dict(placement.decisions)
        decisions["c1"] = Decision("c1", kind, QuantSpec(-127, 127), "wrong on purpose")  # type: ignore[arg-type]
        model = toy("residual")
        node = next(n for n in model.graph if n.name == "conv_3")
        node.replace_input_with(2, next(n for n in model.graph if n.name == "conv_2").outputs[0])
        scales = qparams | {"c1": symmetric(QuantSpec(-127, 127), np.float32(1))}
        with pytest.raises(ExportError, match=f"'c1'.*{message}"):
            build_onnx(model, Placement("paddle_lite", decisions), scales)
