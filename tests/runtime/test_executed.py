"""What the runtimes make of our files: no convolution and no matrix product is left in float.

The counts are those of the graphs that the runtimes execute: ONNX Runtime's optimised model, OpenVINO's runtime model,
Paddle's program behind its oneDNN passes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fullquant.errors import EngineError
from fullquant.placement.target import find_target
from fullquant.runtime.executed import ExecutedGraph, ExecutedOperator, executed_graph
from fullquant.runtime.sessions import Session, executed, open_session
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from fullquant.writers.program_desc import write_paddle
from tests.graph.toy_models import parse
from tests.real_models import LAYERS, float_model, quantized_model
from tests.runtime.test_sessions import needs
from tests.writers.qdq_models import GRAPHS, quantized, toy

# What is left in float, by model: ONNX Runtime has no integer kernel of HardSwish and HardSigmoid.
FLOAT_IN_ORT = {
    "efficientnet_lite0_imagenet": set(), "resnet20_cifar10": {"Pad", "Slice"},
    "mobilenetv3_large_cifar10": {"HardSigmoid", "Mul"}, "mobilenetv3_small_ocr_cls": {"HardSigmoid", "Mul"},
}  # fmt: skip
INTEGER_IN_ORT = {
    "QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearSoftmax", "QuantizeLinear",
    "DequantizeLinear", "Transpose", "Flatten", "Clip", "MaxPool",
}  # fmt: skip


def opened(assets: Path, name: str, target: str, engine: str, folder: Path) -> Session:
    model, placement, qparams = quantized_model(assets / "models" / name, target)
    if engine.startswith("paddle"):
        write_paddle(model, placement, qparams, folder / "m.pdmodel", folder / "m.pdiparams")
        return open_session(folder, engine, threads=1)
    write_onnx(model, placement, qparams, folder / "m.onnx", runtime=find_target(target).onnx_layout)
    return open_session(folder / "m.onnx", engine, threads=1)


def graph_of(session: Session) -> ExecutedGraph:
    found = executed(session)
    assert found is not None
    return found


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", ["onnxruntime", "paddle_lite"])
def test_onnxruntime_multiplies_integers_alone(assets: Path, tmp_path: Path, name: str, target: str) -> None:
    found = graph_of(opened(assets, name, target, "onnxruntime", tmp_path))
    assert (found.integer_layers, found.float_layers) == (LAYERS[name], 0)
    assert set(found.operators) - INTEGER_IN_ORT <= FLOAT_IN_ORT[name]
    clamps = found.operators.get("Clip", 0)
    # A symmetric grid goes on below 0, so that a ReLU stays as a Clip of integers; an affine one ends there.
    assert clamps <= 1 if target == "onnxruntime" else clamps > 1


@needs("openvino")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", ["openvino", "paddle_lite", "onnxruntime"])
def test_openvino_multiplies_integers_alone(assets: Path, tmp_path: Path, name: str, target: str) -> None:
    found = graph_of(opened(assets, name, target, "openvino", tmp_path))
    assert (found.integer_layers, found.float_layers) == (LAYERS[name], 0)


@needs("openvino")
def test_openvino_computes_hard_swish_inside_the_layers(assets: Path, tmp_path: Path) -> None:
    """What the target's table states. A rounding between the two makes operators of their own of them."""
    name = "mobilenetv3_small_ocr_cls"
    functions = {}
    for target in ("openvino", "onnxruntime"):
        operators = graph_of(opened(assets, name, target, "openvino", tmp_path)).operators
        functions[target] = operators.get("Eltwise f32", 0)
    assert functions["openvino"] == 0
    assert functions["onnxruntime"] >= 18  # the network has 18 HardSwish


@needs("paddle")
@pytest.mark.parametrize("name", LAYERS)
def test_onednn_multiplies_integers_alone(assets: Path, tmp_path: Path, name: str) -> None:
    found = graph_of(opened(assets, name, "paddle_lite", "paddle_onednn", tmp_path))
    assert (found.integer_layers, found.float_layers) == (LAYERS[name], 0)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs("openvino"))])
def test_float_models_and_plain_sessions_count_as_float(assets: Path, engine: str) -> None:
    """The counter can say no."""
    name = "resnet20_cifar10"
    found = graph_of(open_session(float_model(assets / "models" / name), engine, threads=1))
    assert (found.integer_layers, found.float_layers) == (0, LAYERS[name])
    built = build_onnx(*quantized_model(assets / "models" / name, "onnxruntime"))
    plain = graph_of(open_session(built, engine, optimize=False, threads=1))
    # OpenVINO computes a linear layer in integers even without its low-precision transformations.
    linear = 1 if engine == "openvino" else 0
    assert (plain.integer_layers, plain.float_layers) == (linear, LAYERS[name] - linear)


@needs("paddle")
def test_plain_paddle_counts_as_float(assets: Path, tmp_path: Path) -> None:
    found = graph_of(opened(assets, "resnet20_cifar10", "paddle_lite", "paddle", tmp_path))
    assert (found.integer_layers, found.float_layers) == (0, LAYERS["resnet20_cifar10"])
    json_form = assets / "models" / "resnet20_cifar10" / "inference.json"
    session = open_session(json_form, "paddle")
    with pytest.raises(EngineError, match=r"use the \.pdmodel form"):
        session.executed()  # type: ignore[attr-defined]
    assert executed(session) is None


def test_a_relu_in_float_is_found_out() -> None:
    """The mutation that integer clamps are there for: ONNX Runtime leaves such layers in float."""
    model = toy("residual")
    placement, qparams, _ = quantized(model)
    good = graph_of(open_session(build_onnx(model, placement, qparams), "onnxruntime"))
    bad = graph_of(open_session(build_onnx(model, placement, qparams, runtime="tensorrt"), "onnxruntime"))
    assert good.float_layers == 0
    assert bad.float_layers > 0


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs("openvino"))])
def test_small_networks(name: str, engine: str) -> None:
    model = toy(name)
    placement, qparams, _ = quantized(model, engine)
    built = build_onnx(model, placement, qparams, runtime=find_target(engine).onnx_layout)
    assert graph_of(open_session(built, engine, threads=1)).float_layers == 0


PRODUCTS = {
    "a bias behind a product": "m = MatMul(x, w)  y = Add(m, b)",
    "a product alone": "y = MatMul(x, w)",
    "two activations": "t = Transpose <perm = [0,2,1]> (x)  y = MatMul(x, t)",
    "a ReLU behind the bias": "m = MatMul(x, w)  a = Add(m, b)  r = Relu(a)  y = MatMul(r, v)",
}


@pytest.mark.parametrize("body", PRODUCTS.values(), ids=PRODUCTS)
def test_products_of_three_axes(body: str) -> None:
    text = f"g (float[N,6,8] x, float[8,4] w, float[4] b, float[4,4] v) => (float y) {{ {body} }}"
    model = parse(text)
    placement, qparams, inputs = quantized(model, "onnxruntime")
    built = build_onnx(model, placement, qparams)
    assert graph_of(open_session(built, "onnxruntime", threads=1)).float_layers == 0
    plain, optimised = (
        open_session(built, "onnxruntime", optimize=mode, threads=1).run({"x": inputs[1]})[0] for mode in (False, True)
    )
    np.testing.assert_allclose(optimised, plain, atol=2.1 * float(qparams[placement.scale_owner("y")].scale))


def test_counting() -> None:
    operators = [
        ExecutedOperator("QLinearConv", layer=True, integer=True), ExecutedOperator("Conv", layer=True, integer=False),
        ExecutedOperator("Clip", layer=False, integer=True), ExecutedOperator("Conv", layer=True, integer=False),
    ]  # fmt: skip
    found = executed_graph(operators)
    assert (found.integer_layers, found.float_layers) == (1, 2)
    assert found.operators == {"QLinearConv": 1, "Conv": 2, "Clip": 1}
