"""The ONNX file means what the placement says, and ONNX Runtime computes it in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.errors import ExportError
from fullquant.graph.edit import SOURCE, constant_value
from fullquant.graph.text import to_text
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import place
from fullquant.writers.onnx_qdq import build_onnx, write_float_onnx, write_onnx
from tests.golden.golden import golden
from tests.graph.toy_models import Array, feeds, parse, run
from tests.writers.qdq_models import GRAPHS, quantized, toy
from tests.writers.qdq_oracle import calibrate, evaluate


def nodes(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def optimised(model: ir.Model, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime makes of the model with all optimisations on."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def run_optimised(model: ir.Model, feed: Array) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": feed})[0])


# --- what the file means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(
    ("target", "settings_"),
    [
        ("paddle_lite", {}),
        ("paddle_lite", {"weight_type": "uint8"}),
        ("paddle_lite", {"activation_type": "int8"}),
        ("paddle_lite", {"runtime": "openvino"}),
        ("tensorrt", {"runtime": "tensorrt"}),
        ("onnxruntime", {}),
        ("onnxruntime", {"activation_type": "int8", "weight_type": "uint8"}),
    ],
)
def test_the_file_is_the_simulation(name: str, target: str, settings_: Mapping[str, Any]) -> None:
    model = toy(name)
    placement, qparams, inputs = quantized(model, target)
    built = build_onnx(model, placement, qparams, **settings_)
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    for feed in inputs:
        expected = evaluate(model, feed, placement, qparams)["y"]
        np.testing.assert_allclose(run(built, feed), expected, atol=1e-6)
        assert not np.allclose(expected, evaluate(model, feed)["y"], atol=1e-6), "the oracle quantizes"


def test_only_the_named_consumers_read_the_quantized_tensor() -> None:
    model = toy("residual")
    placement, qparams, inputs = quantized(model, full=False, op_types=("conv2d",))
    assert placement["r3"].spec is None
    assert placement["r0"].consumers == {"conv_2"}, "the depthwise convolution is not in the list"
    built = build_onnx(model, placement, qparams)
    for feed in inputs:
        np.testing.assert_allclose(run(built, feed), evaluate(model, feed, placement, qparams)["y"], atol=1e-6)
    assert built.graph.outputs[0].producer().op_type == "Gemm"  # type: ignore[union-attr]


def test_skipped_nodes_stay_float() -> None:
    model = toy("mobile")
    name = next(str(node.name) for node in model.graph if node.op_type == "Mul")
    placement, qparams, inputs = quantized(model, skip_patterns=(name,))
    built = build_onnx(model, placement, qparams)
    for feed in inputs:
        np.testing.assert_allclose(run(built, feed), evaluate(model, feed, placement, qparams)["y"], atol=1e-6)


@pytest.mark.parametrize("settings_", [{}, {"runtime": "tensorrt"}])
def test_a_clamp_behind_a_move(settings_: Mapping[str, Any]) -> None:
    """Concat and ReLU share a scale: only a Clip of integers is left, with no second rounding."""
    body = "t = Tanh(x)  c = Concat <axis = 1> (x, t)  r = Relu(c)  y = Sigmoid(r)"
    model = prepare(parse(f"g (float[N,4,6,6] x) => (float y) {{ {body} }}"))
    placement, qparams, inputs = quantized(model)
    assert placement["r"].shares is not None
    built = build_onnx(model, placement, qparams, **settings_)
    assert (nodes(built)["Relu"], nodes(built)["QuantizeLinear"]) == ((0, 4) if not settings_ else (1, 5))
    for feed in inputs:
        np.testing.assert_allclose(run(built, feed), evaluate(model, feed, placement, qparams)["y"], atol=1e-6)


@given(
    scale=st.floats(2.0**-10, 8.0, width=32),
    bounds=st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)),
    affine_grid=st.booleans(),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200, deadline=None)
def test_rounding_commutes_with_clamping(
    scale: float, bounds: tuple[float, float], affine_grid: bool, zero_point: int, seed: int
) -> None:
    """Why a clamp may be done on the integers: q(clip(x, a, b)) = clip(q(x), q(a), q(b)), exactly."""
    low, high = (np.float32(bound) for bound in sorted(bounds))
    if affine_grid:
        params = QParams(QuantSpec(0, 255, symmetric=False), np.float32(scale), np.int64(zero_point))
    else:
        params = symmetric(QuantSpec(-128, 127), np.float32(scale))
    x = np.random.default_rng(seed).normal(size=200).astype(np.float32) * np.float32(scale * 100)
    x = np.concatenate([x, np.float32([low, high]), np.float32(scale) * (np.arange(-5, 5) + np.float32(0.5))])
    clamped = affine.quantize(np.clip(x, low, high), params)
    ends = affine.quantize(np.stack([low, high]), params)
    np.testing.assert_array_equal(clamped, np.clip(affine.quantize(x, params), ends[0], ends[1]))


@pytest.mark.parametrize("settings_", [{}, {"runtime": "tensorrt"}])
@pytest.mark.parametrize("grid", [(-127, 127), (-8, 7)])
def test_grids_narrower_than_the_storage(grid: tuple[int, int], settings_: Mapping[str, Any]) -> None:
    model = toy("residual")
    placement, _, inputs = quantized(model)
    narrow = {
        decision.tensor: replace(decision, spec=QuantSpec(*grid))
        if decision.kind == "activation" and decision.spec is not None
        else decision
        for decision in placement
    }
    placement = Placement("paddle_lite", narrow)
    qparams = calibrate(model, placement, inputs[0])
    built = build_onnx(model, placement, qparams, **settings_)
    for feed in inputs:
        # Beyond the calibrated range, so that the ends matter.
        far = feed * np.float32(3)
        np.testing.assert_allclose(run(built, far), evaluate(model, far, placement, qparams)["y"], atol=1e-6)


# --- what ONNX Runtime does with it ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
def test_onnxruntime_computes_in_integers(target: str, weight_type: Any, tmp_path: Path) -> None:
    model = toy("residual")
    placement, qparams, inputs = quantized(model, target, reduce_range=True)
    built = build_onnx(model, placement, qparams, weight_type=weight_type)
    found = Counter(node.op_type for node in optimised(built, tmp_path).graph.node)
    assert not {
        "Conv",
        "FusedConv",
        "Gemm",
        "MatMul",
        "Add",
        "Relu",
        "GlobalAveragePool",
        "AveragePool",
        "Concat",
    } & set(found)
    integer = ("QLinearConv", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat")
    assert [found[operator] for operator in integer] == [3, 1, 1, 1, 1, 1]
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1), "only at the model's input and output"
    # reduce_range: no sum saturates, so the processor's kernels agree with the file's meaning up to rounding.
    step = float(qparams["y"].scale)
    for feed in inputs:
        np.testing.assert_allclose(run_optimised(built, feed), run(built, feed), atol=2.1 * step)


def test_onnxruntime_keeps_hard_swish_alone_in_float(tmp_path: Path) -> None:
    model = toy("mobile")
    placement, qparams, _ = quantized(model)
    found = Counter(node.op_type for node in optimised(build_onnx(model, placement, qparams), tmp_path).graph.node)
    integer = ("QLinearConv", "QLinearMul", "QLinearAdd", "QGemm", "QLinearSoftmax", "QLinearGlobalAveragePool")
    assert [found[operator] for operator in integer] == [3, 1, 1, 1, 1, 2]
    assert not {"Conv", "FusedConv", "Gemm", "Add"} & set(found)
    # Input, HardSwish, HardSigmoid in; HardSwish, HardSigmoid, output out.
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (3, 3)


def test_a_float_relu_would_keep_convolutions_float(tmp_path: Path) -> None:
    """The reason for integer clamps; when this fails, ONNX Runtime has learnt to fuse the plain form."""
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    plain = build_onnx(model, placement, qparams, runtime="tensorrt")
    found = Counter(node.op_type for node in optimised(plain, tmp_path).graph.node)
    assert found["FusedConv"] + found["Conv"] > 0


def test_openvino_agrees() -> None:
    openvino = pytest.importorskip("openvino")
    model = toy("residual")
    placement, qparams, inputs = quantized(model, reduce_range=True)
    built = build_onnx(model, placement, qparams, runtime="openvino")
    loaded = openvino.Core().read_model(ir.to_proto(built).SerializeToString())
    compiled = openvino.Core().compile_model(loaded, "CPU", {"INFERENCE_NUM_THREADS": 1})
    for feed in inputs:
        (result,) = compiled(feed).values()
        np.testing.assert_allclose(result, run(built, feed), atol=2.1 * float(qparams["y"].scale))


# --- the form of the file ----------------------------------------------------------------------------------------


def test_names_types_and_pairs() -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    built = build_onnx(model, placement, qparams)
    graph = built.graph
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == ["x", "y"]
    assert graph.outputs[0].dtype == ir.DataType.FLOAT
    weight = constant_value(graph.initializers["w0.quantized"])
    assert weight is not None
    assert weight.dtype == np.int8
    assert constant_value(graph.initializers["w0.zero_point"]).tolist() == [0] * 8  # type: ignore[union-attr]
    assert constant_value(graph.initializers["x.zero_point"]) == np.uint8(128)
    bias = constant_value(graph.initializers["b0.quantized"])
    assert bias is not None
    assert bias.dtype == np.int32
    assert "w0" not in graph.initializers, "the float weights are gone"
    inside_kernels = {decision.tensor for decision in placement if decision.fused}
    assert inside_kernels == {"c0", "c2", "a2"}
    assert not any(f"{tensor}.quantized" in {v.name for n in graph for v in n.outputs} for tensor in inside_kernels)
    assert not {"Relu"} & set(nodes(built))
    # Moves share the scale of the tensor in front of them.
    shared = constant_value(graph.initializers["m3.scale"])
    assert shared == qparams[placement.scale_owner("m3")].scale
    assert placement.scale_owner("m3") != "m3"


def test_the_whole_file_as_text() -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    golden("residual_qdq", to_text(build_onnx(model, placement, qparams)))


def test_the_argument_is_not_changed() -> None:
    model = toy("residual")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    placement, qparams, _ = quantized(model)
    build_onnx(model, placement, qparams)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_names_that_are_taken() -> None:
    model = toy("residual")
    for node in model.graph:
        for value in node.outputs:
            value.name = {"r0": "x.quantized", "c1": "x.scale"}.get(str(value.name), value.name)
    placement, qparams, inputs = quantized(model)
    built = build_onnx(model, placement, qparams)
    np.testing.assert_allclose(run(built, inputs[0]), evaluate(model, inputs[0], placement, qparams)["y"], atol=1e-6)


def test_header(tmp_path: Path) -> None:
    model = toy("mobile")
    model.metadata_props[SOURCE] = "/somewhere/else"
    placement, qparams, _ = quantized(model)
    write_onnx(model, placement, qparams, tmp_path / "int8.onnx")
    proto = onnx.load(tmp_path / "int8.onnx")
    assert proto.producer_name == "fullquant"
    assert proto.producer_version
    assert proto.opset_import[0].version == 14, "HardSwish"
    assert proto.ir_version == 8
    assert {p.key: p.value for p in proto.metadata_props} == {"fullquant.target": "paddle_lite"}
    assert not any(node.metadata_props for node in proto.graph.node)


# --- errors and files --------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_named() -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    missing = {name: params for name, params in qparams.items() if name != "m4"}
    with pytest.raises(ExportError, match="no scale was calibrated for 'm4'"):
        build_onnx(model, placement, missing)
    shared = {name: params for name, params in qparams.items() if name != "r3"}
    with pytest.raises(ExportError, match=r"'r3'|shares"):
        build_onnx(model, placement, shared)
    with pytest.raises(ExportError, match="zero point 0 only"):
        build_onnx(model, placement, qparams, runtime="tensorrt", activation_type="uint8")
    shifted, shifted_params, _ = quantized(model, "onnxruntime")
    with pytest.raises(ExportError, match="zero point other than 0"):
        build_onnx(model, shifted, shifted_params, runtime="tensorrt")
    wide = dict(placement.decisions)
    wide["x"] = replace(wide["x"], spec=QuantSpec(-(2**15), 2**15 - 1))
    wide_params = qparams | {"x": symmetric(QuantSpec(-(2**15), 2**15 - 1), np.float32(1e-3))}
    with pytest.raises(ExportError, match=r"'x'.*8 bits"):
        build_onnx(model, Placement("paddle_lite", wide), wide_params)
    per_channel = qparams | {"x": symmetric(QuantSpec(-128, 127, axis=1), np.ones(3, np.float32))}
    with pytest.raises(ExportError, match=r"'x'.*per channel"):
        build_onnx(model, placement, per_channel)


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    model = toy("residual")
    source = tmp_path / "model.onnx"
    write_float_onnx(model, source)
    before = source.read_bytes()
    model.metadata_props[SOURCE] = str(source)
    placement, qparams, _ = quantized(model)
    with pytest.raises(ExportError, match="never overwritten"):
        write_onnx(model, placement, qparams, source)
    with pytest.raises(ExportError, match="never overwritten"):
        write_float_onnx(model, source)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", GRAPHS)
def test_the_float_model(name: str, tmp_path: Path) -> None:
    model = toy(name)
    write_float_onnx(model, tmp_path / "float.onnx")
    onnx.checker.check_model(str(tmp_path / "float.onnx"), full_check=True)
    written = ir.load(tmp_path / "float.onnx")
    for feed in feeds(model):
        np.testing.assert_allclose(run(written, feed), run(model, feed), rtol=1e-5, atol=1e-6)


def test_a_real_model(ocr_model_dir: Path, tmp_path: Path) -> None:
    """The text-line classifier: the file is small, valid, integer, and close to the float model."""
    read_model = pytest.importorskip("fullquant.readers").read_model
    model = prepare(read_model(ocr_model_dir))
    placement = place(model)
    feed = np.random.default_rng(0).uniform(-1, 1, size=(2, 3, 48, 192)).astype(np.float32)
    qparams = calibrate(model, placement, feed)
    write_onnx(model, placement, qparams, tmp_path / "int8.onnx")
    write_float_onnx(model, tmp_path / "float.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * (tmp_path / "float.onnx").stat().st_size
    built = ir.load(tmp_path / "int8.onnx")
    found = Counter(node.op_type for node in optimised(built, tmp_path).graph.node)
    assert found["QLinearConv"] == 53
    assert not {"Conv", "FusedConv", "Relu"} & set(found)
    np.testing.assert_allclose(run(built, feed), run(model, feed), atol=0.1)
