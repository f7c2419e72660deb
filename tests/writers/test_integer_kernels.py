"""Operators of the ONNX file, optimised, against the same file computed node by node: ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.calibration.observers import qparams_of_range
from fullquant.numerics.qparams import QParams, symmetric
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers.quantized import split_quantizers
from fullquant.writers.onnx_qdq import build_onnx
from tests.graph.toy_models import Array, feeds, operators, parse, run
from tests.readers.test_quantized import simulate
from tests.writers.qdq_oracle import calibrate

#: A convolution in front, so that what follows is not the input. {operator: (its line, its constants)}
_HEAD = "g (float[N,4,8,8] x, float[4,4,1,1] w) => (float y) { c = Conv(x, w) "
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "softmax": ("y = Softmax <axis = 1> (c)", {}),
    "channels": ("y = Pad(c, p)", {"p": np.array([0, 2, 0, 0, 0, 1, 0, 0])}),
    "rows": ("y = Pad(c, p)", {"p": np.array([0, 0, 1, 0, 0, 0, 2, 0])}),
    "rows and columns": ("y = Pad(c, p)", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "with a value": ("y = Pad(c, p, v)", {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "v": np.float32(0.4)}),
    "edge": ('y = Pad <mode = "edge"> (c, p)', {"p": np.array([0, 0, 1, 0, 0, 0, 2, 0])}),
    "behind a clamp": ("r = Relu(c) y = Pad(r, p)", {"p": np.array([0, 2, 0, 0, 0, 1, 0, 0])}),
    "twice": ("a = Pad(c, p) y = Pad(a, p)", {"p": np.array([0, 1, 0, 0, 0, 1, 0, 0])}),
    "read beside": ("r = Relu(c) a = Pad(r, p) b = GlobalMaxPool(r) d = GlobalMaxPool(a) y = Concat <axis = 1> (b, d)",
                    {"p": np.array([0, 1, 0, 0, 0, 1, 0, 0])}),
    "average": ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (c)", {}),
    "average without": ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)", {}),
}  # fmt: skip
_AFFINE = "onnxruntime"


def built(name: str, target: str) -> tuple[ir.Model, Array, float]:
    """(the file, images, the step of its output)."""
    line, constants = CASES[name]
    lines = line.replace(") ", ")\n")
    model = prepare(parse(f"{_HEAD}\n{lines} }}", **constants))
    placement = place(model, target, PlacementOptions(scale_grid="short"))
    x = feeds(model)[1]
    qparams = {key: _even(params) for key, params in calibrate(model, placement, x).items()}
    return build_onnx(model, placement, qparams), x, float(qparams[placement.scale_owner("y")].scale)


def _even(params: QParams) -> QParams:
    """Zero points as calibration has them."""
    if params.spec.symmetric:
        return params
    return replace(params, zero_point=np.asarray(2 * np.rint(params.zero_point / 2)))


@pytest.mark.parametrize("target", ["paddle_lite", _AFFINE])
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_is_exact(name: str, target: str) -> None:
    file, x, _ = built(name, target)
    np.testing.assert_array_equal(run(file, x, optimise=True), run(file, x))


@pytest.mark.parametrize("target", ["paddle_lite", _AFFINE])
@pytest.mark.parametrize("name", CASES)
def test_openvino_is_within_a_step(name: str, target: str) -> None:
    file, x, step = built(name, target)
    np.testing.assert_allclose(_openvino(file, x), run(file, x), atol=1.01 * step)


@pytest.mark.parametrize("target", ["paddle_lite", _AFFINE])
@pytest.mark.parametrize("name", CASES)
def test_the_file_is_read_back(name: str, target: str) -> None:
    file, x, _ = built(name, target)
    found = split_quantizers(file)
    np.testing.assert_array_equal(simulate(found, x), run(file, x))
    there = {value.name for node in file.graph for value in node.outputs}
    assert {after for _, after in found.places.values()} <= there


def test_pads_and_averages_are_of_integers() -> None:
    for name in ("channels", "average"):
        file, _, _ = built(name, "paddle_lite")
        (pad,) = (node for node in file.graph if node.op_type == "Pad")
        assert pad.inputs[0].dtype == pad.outputs[0].dtype == ir.DataType.UINT8
        assert pad.inputs[2].const_value.numpy() == 128
        assert [node.op_type for node in file.graph].count("QuantizeLinear") == (2 if name == "channels" else 3)
    assert "Pad" not in operators(built("average without", "paddle_lite")[0])


def test_a_pad_of_floats_is_the_reason() -> None:
    """When this fails, OpenVINO pads with the zero point."""
    model = prepare(parse(f"{_HEAD}\n y = Pad(c, p) }}", p=CASES["channels"][1]["p"]))
    placement = place(model)
    x = feeds(model)[1]
    file = build_onnx(model, placement, calibrate(model, placement, x), runtime="openvino", activation_type="uint8")
    assert np.abs(_openvino(file, x) - run(file, x)).max() > 1


def test_other_softmax_scales_are_the_reason() -> None:
    """When this fails, QLinearSoftmax divides by the scale, not by floor(1 / scale) steps."""
    model = prepare(parse(f"{_HEAD}\n y = Softmax <axis = 1> (c) }}"))
    placement = place(model)
    x = feeds(model)[1]
    qparams = calibrate(model, placement, x)
    qparams["y"] = symmetric(qparams["y"].spec, 1.5 / 256)
    file = build_onnx(model, placement, qparams)
    assert np.mean(run(file, x, optimise=True) != run(file, x)) > 0.01


def test_zero_points_are_even() -> None:
    spec = place(prepare(parse(f"{_HEAD}\n y = Relu(c) }}")), _AFFINE)["c"].spec
    assert spec is not None
    for low in np.linspace(-5, 0, 40):
        for high in (0.0, 0.3, 4.0):
            params = qparams_of_range(float(low), high, spec)
            zero_point, scale = int(params.zero_point), float(params.scale)
            assert zero_point % 2 == 0
            assert spec.qmin <= zero_point <= spec.qmax
            # What is cut off at an end is a step at most.
            assert (spec.qmin - zero_point) * scale <= low + 1.01 * scale
            assert (spec.qmax - zero_point) * scale >= high - 1.01 * scale


def _openvino(model: ir.Model, x: Array) -> Array:
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    loaded = openvino.Core().read_model(ir.to_proto(model).SerializeToString())
    return np.asarray(next(iter(openvino.Core().compile_model(loaded, "CPU", settings)(x).values())))
