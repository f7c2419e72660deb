"""`fullquant verify` passes what quantize writes, and names what is wrong in a file that was changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.test_cli import fullquant


@pytest.fixture(scope="module")
def written(tmp_path_factory, model, data) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "out"
    options = ("--ptq", "--img-size", "8", "--resize-size", "8", "--batch-size", "4", "--workers", "0")
    result = fullquant("quantize", model, "--data", data, "--save-dir", folder, *options, "--devices", "cpu")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_what_quantize_wrote_passes_and_plain_runtimes_are_the_simulation(written, tmp_path):
    result = fullquant("verify", written, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["findings"] == []
    exact = {c["engine"]: c for c in found["checks"] if c["engine"] in ("simulated", "integer", "onnxruntime")
             and not c["optimised"]}  # fmt: skip
    assert set(exact) == {"simulated", "integer", "onnxruntime"}
    assert all(check["agreement"] == 1.0 for check in exact.values())


def test_a_bias_beyond_32_bits_is_named_with_status_1(copy):
    """What broke per_channel MobileNetV3 in ONNX Runtime (microsoft/onnxruntime issue 11415)."""
    path = copy / "model_int8.onnx"
    model = onnx.load(path)
    name = _first_bias(model)
    initializer = next(i for i in model.graph.initializer if i.name == name)
    whole = np.full(numpy_helper.to_array(initializer).shape, 2**31 - 1, np.int32)
    initializer.CopyFrom(numpy_helper.from_array(whole, name))
    onnx.save(model, path)
    result = fullquant("verify", copy, "--engine", "integer")
    assert result.exit_code == 1, result.output
    assert "model_int8.onnx: " in result.output
    assert "not passed" in result.output


def test_a_variable_that_paddle_lite_needs_is_named(copy):
    """The scales of two weights made one variable: Paddle Lite divides the second by what it made of the first."""
    from fullquant.formats import framework_pb2 as pb

    path = copy / "inference.pdmodel"
    program = pb.ProgramDesc()
    program.ParseFromString(path.read_bytes())
    weights = [op for op in program.blocks[0].ops if op.type == "dequantize_linear"
               and any(a.name == "quant_axis" and a.i >= 0 for a in op.attrs)]  # fmt: skip
    scales = [next(v for v in op.inputs if v.parameter == "Scale") for op in weights]
    assert len(scales) >= 2
    scales[1].arguments[:] = scales[0].arguments
    path.write_bytes(program.SerializeToString())
    result = fullquant("verify", copy, "--engine", "integer")
    assert result.exit_code == 1, result.output
    assert scales[0].arguments[0] in result.output


def _first_bias(model: onnx.ModelProto) -> str:
    integers = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT32}
    return next(n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in integers)
