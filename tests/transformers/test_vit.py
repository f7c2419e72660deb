"""A tiny transformer through placement, calibration, simulation, training, all writers and the runtimes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fullquant.auto_compression.calibrate import calibrated
from fullquant.auto_compression.exporting import export, findings
from fullquant.auto_compression.stages import QuantizedModel
from fullquant.calibration.calibrator import calibrate_weights
from fullquant.calibration.sums import agreeing_sums
from fullquant.config import load_config
from fullquant.evaluation.accuracy import kl_divergence
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.placement.tables import TABLES
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.integer.model import IntegerModel
from fullquant.runtime.sessions import open_session
from fullquant.runtime.simulator import Simulator
from fullquant.writers.program_desc import write_paddle
from tests.calibrating import min_max_qparams
from tests.graphs import run_onnxruntime
from tests.real_models import images
from tests.vit import INPUT, tiny_vit

IMAGES = 200
PADDLE = [table.name for table in TABLES if table.writes_paddle and table.name != "rknn"]
# oneDNN in Paddle Inference computes more in float, and rounds nothing in front of it: decision 0024.
INTEGER = [name for name in PADDLE if name != "paddle_inference"]


@cache
def quantized(target: str, *, per_channel: bool = True) -> QuantizedModel:
    model = prepare(tiny_vit())
    placement = place(model, target, PlacementOptions(scale_grid="short", per_channel=per_channel))
    activations = min_max_qparams(GraphModule(model), model, placement, [images(INPUT, 16, seed=5)])
    qparams = agreeing_sums(model, placement, activations | calibrate_weights(model, placement, activations))
    return QuantizedModel(model, placement, qparams, GraphModule(model, placement=placement, qparams=qparams).eval())


def test_the_canonical_graph_computes_the_same_for_any_batch() -> None:
    source, model = tiny_vit(), prepare(tiny_vit())
    x = images(INPUT, 5)
    expected = run_onnxruntime(source, x)
    assert np.ptp(expected, axis=0).min() > 0.1, "the outputs hardly depend on the image"
    np.testing.assert_allclose(run_onnxruntime(model, x), expected, atol=1e-5)
    np.testing.assert_allclose(Simulator(GraphModule(model)).predict(x), expected, atol=1e-5)
    kinds = {str(node.op_type) for node in model.graph}
    assert kinds >= {"LayerNormalization", "Softmax", "Gelu", "Pad"}
    assert not kinds & {"Shape", "Expand", "Concat"}, "the class token is an addition"


@pytest.mark.parametrize("target", INTEGER)
def test_every_tensor_between_operators_is_int8(target: str) -> None:
    model = quantized(target)
    free = [d.tensor for d in model.placement if d.kind == "activation" and d.spec is None]
    assert not free
    for kind in ("LayerNormalization", "Gelu", "Softmax"):
        nodes = [node for node in model.model.graph if node.op_type == kind]
        assert nodes
        for node in nodes:
            for value in (node.inputs[0], node.outputs[0]):
                assert value is not None
                decision = model.placement[str(value.name)]
                assert decision.spec is not None
                assert not decision.fused, f"{value.name} is not rounded"


def test_what_onednn_leaves_in_float_is_said() -> None:
    """Its products of tokens are float: what they, norms and functions hand on has no grid, and that is said."""
    model = quantized("paddle_inference")
    free = [d for d in model.placement if d.kind == "activation" and d.spec is None]
    assert {d.reason for d in free} == {"made and read in float on paddle_inference: nobody rounds it"}
    weights = {str(n.inputs[1].name) for n in model.model.graph if n.op_type == "MatMul" and n.inputs[1].const_value}
    assert weights
    assert all(model.placement[name].spec is not None for name in weights)


@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
def test_written_files_agree_with_the_simulation(target: str, tmp_path: Path) -> None:
    model = quantized(target)
    files = export(model, tmp_path, ("inference.pdmodel", "inference.pdiparams"))
    assert findings(files) == []
    x = images(INPUT, IMAGES)
    expected = Simulator(model.student).predict(x)
    assert len(set(expected.argmax(axis=1))) > 2, "too few classes to tell agreement from chance"
    for file in (files.onnx, files.paddle_model, files.paddle_json):
        if file is None:
            continue
        if file.suffix != ".onnx":
            pytest.importorskip("paddle", reason="Paddle Inference is not installed")
        engine = "onnxruntime" if file.suffix == ".onnx" else "paddle"
        (found,) = open_session(file, engine).run({"x": x})
        assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.99, file


def test_the_simulation_adds_the_biases_that_are_written(tmp_path: Path) -> None:
    """The bias behind a MatMul is on the int32 grid there too: one that is not breaks ties, everywhere in the model."""
    model = quantized("paddle_lite")
    file = export(model, tmp_path, ("inference.pdmodel", "inference.pdiparams")).onnx
    x = images(INPUT, IMAGES)
    expected = Simulator(model.student).predict(x)
    (found,) = open_session(file, "onnxruntime", optimize=False).run({"x": x})
    assert np.mean(found != expected) < 0.02


def test_the_older_form_agrees_with_the_simulation(tmp_path: Path) -> None:
    pytest.importorskip("paddle", reason="Paddle Inference is not installed")
    model = quantized("paddle_lite", per_channel=False)
    files = export(model, tmp_path, ("inference.pdmodel", "inference.pdiparams"), onnx_format=False)
    assert findings(files) == []
    x = images(INPUT, IMAGES)
    expected = Simulator(model.student).predict(x)
    assert files.paddle_model is not None
    (found,) = open_session(files.paddle_model, "paddle").run({"x": x})
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.99


def test_float_programs_are_the_model(tmp_path: Path) -> None:
    pytest.importorskip("paddle", reason="Paddle Inference is not installed")
    model, x = prepare(tiny_vit()), images(INPUT, 4)
    expected = run_onnxruntime(model, x)
    program = tmp_path / "f.pdmodel"
    write_paddle(model, None, {}, program, tmp_path / "f.pdiparams", json_path=tmp_path / "f.json")
    for file in (program, tmp_path / "f.json"):
        (found,) = open_session(file, "paddle").run({"x": x})
        np.testing.assert_allclose(found, expected, atol=1e-4)
        again = prepare(read_model(file))
        np.testing.assert_allclose(Simulator(GraphModule(again)).predict(x), expected, atol=1e-4)


def test_integers_follow_the_simulation() -> None:
    model, x = quantized("paddle_lite"), images(INPUT, IMAGES)
    expected = Simulator(model.student).predict(x)
    integer = IntegerModel(model.model, model.placement, model.qparams)
    assert integer.float_nodes == ()
    assert np.mean(integer.predict(x).argmax(axis=1) == expected.argmax(axis=1)) >= 0.97


@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime", "openvino"])
def test_openvino_computes_the_token_for_an_open_batch(target: str, tmp_path: Path) -> None:
    """Behind Concat(Expand(token), patches) it added the first channel's bias to every channel (2026.4.1)."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = quantized(target)
    file = export(model, tmp_path, ("inference.pdmodel", "inference.pdiparams")).onnx
    x = images(INPUT, IMAGES)
    expected = Simulator(model.student).predict(x)
    (found,) = open_session(file, "openvino").run({"x": x})
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.97


def test_onednn_computes_the_token(tmp_path: Path) -> None:
    """Its kernel of `pad` writes beyond its output: the file must not hold one."""
    pytest.importorskip("paddle", reason="Paddle Inference is not installed")
    model, x = prepare(tiny_vit()), images(INPUT, 4)
    write_paddle(model, None, {}, tmp_path / "f.pdmodel", tmp_path / "f.pdiparams", json_path=tmp_path / "f.json")
    for file in (tmp_path / "f.pdmodel", tmp_path / "f.json"):
        (found,) = open_session(file, "paddle_onednn").run({"x": x})
        np.testing.assert_allclose(found, run_onnxruntime(model, x), atol=1e-3)


def test_a_training_step_reaches_every_weight() -> None:
    model = quantized("paddle_lite")
    student = GraphModule(model.model, placement=model.placement, qparams=model.qparams).train()
    x = images(INPUT, 8)
    teacher = torch.from_numpy(Simulator(GraphModule(model.model)).predict(x))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = ((student(torch.from_numpy(x)) - teacher) ** 2).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    for name, weight in student.weights.items():
        assert weight.grad is not None, name
        assert bool(torch.isfinite(weight.grad).all()), name
    assert min(step() for _ in range(5)) < first


def test_the_default_calibration_is_nearer_than_the_largest_values(caplog: pytest.LogCaptureFixture) -> None:
    """The class token is the same for every image: it has no gradient, and no say in the choice of scales."""
    model = prepare(tiny_vit())
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="short"))
    config = load_config({"QuantAware": {}, "Distillation": {}, "TrainConfig": {"train_iter": 1}})
    observer = config.quantization.observer
    teacher = GraphModule(model).eval()
    batches = [images(INPUT, 32, seed=seed) for seed in range(4)]
    with caplog.at_level("INFO", logger="fullquant"):
        student = calibrated(
            model, teacher, placement, batches, observer, correct=True, probabilities=False, progress=False
        )
    assert "calibration with fisher" in caplog.text
    x = images(INPUT, IMAGES)
    expected = Simulator(teacher).predict(x)
    found, plain = (
        float(kl_divergence(expected, Simulator(s).predict(x), probabilities=False).mean())
        for s in (student.eval(), quantized("paddle_lite").student)
    )
    assert found < plain
