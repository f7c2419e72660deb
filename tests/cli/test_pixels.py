"""A model that takes uint8 images, from the command line: which preprocessing it needs, and what is measured."""

from __future__ import annotations

import json

import pytest

from fullquant.cli import eval_script
from tests.readers.test_pixels import pixel_model
from tests.test_cli import fullquant, one_line_error, script, settings, write

PLAIN = ("--mean", 0, "--std", 1, "--scale", 1)


@pytest.fixture(scope="module", params=["cast", "NHWC, cast first"])
def pixels(request, tmp_path_factory):
    return pixel_model(tmp_path_factory.mktemp("pixels") / "model.onnx", request.param)


def test_another_preprocessing_is_refused_with_the_remedy(pixels, data, tmp_path, monkeypatch, capsys):
    result = fullquant("quantize", pixels, "--data", data, "--ptq", "--save-dir", tmp_path / "out")
    one_line_error(result.exit_code, result.stderr, str(pixels), "uint8", "--mean 0 --std 1 --scale 1")
    document = {"Global": {**settings(pixels, data)["Global"], "mean": 0, "std": 1}}
    path = write(tmp_path / "eval.yaml", document)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", path)
    one_line_error(status, err, "Global.mean: 0, std: 1 and scale: 1")


def test_the_float_file_and_the_int8_files_agree(pixels, data, tmp_path):
    out = tmp_path / "out"
    result = fullquant("quantize", pixels, "--data", data, "--ptq", *PLAIN, "--save-dir", out, "--devices", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    (note,) = [note for note in report["notes"] if "uint8" in note]
    assert "float32 with the same numbers, 0 to 255" in note
    rows = {(row["engine"], row["optimised"]): row for row in report["rows"]}
    assert rows["onnxruntime", False]["same_as_simulated"] == 1.0
    result = fullquant("evaluate", out / "model_int8.onnx", "--data", data, *PLAIN, "--reference", pixels, "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)[0]
    assert compared["agreement"] == rows["onnxruntime", False]["agreement"]  # the file in uint8 is the float model
    verified = fullquant("verify", out, "--engine", "onnxruntime", "--no-locate")
    assert verified.exit_code == 0, verified.output
    assert "float" in verified.stdout
    timed = fullquant("benchmark", out, "--engine", "onnxruntime", "--repeats", 2)
    assert timed.exit_code == 0, timed.output
    assert "float" in timed.stdout
