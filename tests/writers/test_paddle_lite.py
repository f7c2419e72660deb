"""Paddle Lite's converter takes the int8 file and gives kernels their scales; `fullquant convert` says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fullquant.auto_compression.conversion import convert_to_paddle_lite
from fullquant.cli.app import app
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.readers import read_model
from fullquant.runtime.paddle_lite.converter import VARIABLE
from fullquant.writers.lite_form import lite_form
from fullquant.writers.program_desc import write_paddle
from tests.paddle_lite_program import CONVERTER, Int8File, needs_paddle_lite, script
from tests.writers.paddle_oracle import minmax_qparams

FILES = {"m.pdmodel", "m.pdiparams"}


@pytest.fixture
def folder(tmp_path) -> Path:
    Int8File(tmp_path, reduce_range=False)
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--to", "paddle-lite"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- with the real program -------------------------------------------------------------------------------------------


@pytest.fixture
def converter(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, str(CONVERTER))


@needs_paddle_lite
@pytest.mark.parametrize("targets", ["arm", "x86"])
def test_layers_run_in_int8(folder, converter, targets: str) -> None:
    found = convert_to_paddle_lite(folder, targets).audit
    float_on_x86 = targets == "x86"  # the product: see decision 0015
    assert found.layers == found.same_weights == 6
    assert found.int8_layers == 6 - float_on_x86
    assert found.kernels[f"{targets} int8"].keys() >= {"conv2d", "depthwise_conv2d"}
    assert {f.kind for f in found.findings} == ({"float", "wrong"} if float_on_x86 else set())


@needs_paddle_lite
def test_the_whole_model_is_one_npu_subgraph(folder, converter) -> None:
    before = contents(folder)
    status, out, _ = run(folder, "--valid_targets", "verisilicon_timvx,arm", "--strict")
    assert status == 0
    assert "6 of 6 have exactly the weights and scales of m.pdmodel" in out
    assert "in one subgraph" in out
    after = contents(folder)
    made = {"model_verisilicon_timvx.nb", "model_verisilicon_timvx.report.json"}
    assert set(after) == FILES | made
    assert {name: after[name] for name in FILES} == before
    report = json.loads(after["model_verisilicon_timvx.report.json"])
    assert report["fully_on_npu"] is report["quantized"] is True
    assert report["bytes"] == len(after["model_verisilicon_timvx.nb"])
    assert report["findings"] == []


@needs_paddle_lite
def test_what_falls_back_is_said_and_strict_fails(tmp_path, converter) -> None:
    from tests.writers.test_lite_form import shortcut

    model = shortcut()
    placement = place(model, "paddle_inference")  # whose files keep the padding
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 8)).astype(np.float32)
    write_paddle(
        model, placement, minmax_qparams(model, placement, x), tmp_path / "m.pdmodel", tmp_path / "m.pdiparams"
    )
    status, out, _ = run(tmp_path, "--valid_targets", "verisilicon_timvx,arm", "--strict")
    assert status == 1
    assert "this Paddle Lite has no verisilicon_timvx converter for pad" in out
    assert "without its steps" in out
    assert run(tmp_path, "--valid_targets", "verisilicon_timvx,arm")[0] == 0


@needs_paddle_lite
def test_a_partition_file_keeps_operators_off_the_npu(folder, converter, tmp_path) -> None:
    (tmp_path / "keep.txt").write_text("softmax\n")
    targets = ("--valid_targets", "verisilicon_timvx,arm", "--partition-file", tmp_path / "keep.txt", "--json")
    status, out, _ = run(folder, *targets)
    assert status == 0
    (finding,) = json.loads(out)["findings"]
    assert (finding["operator"], finding["kind"]) == ("softmax", "fallback")


@needs_paddle_lite
@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_ocr_cls", "efficientnet_lite0_imagenet", "mobilenetv3_large_cifar10", "resnet20_cifar10"],
)
def test_real_models_are_whole_on_the_npu(assets: Path, tmp_path, converter, name: str) -> None:
    size = {"mobilenetv3_small_ocr_cls": (48, 192), "efficientnet_lite0_imagenet": (224, 224)}.get(name, (32, 32))
    model = prepare(read_model(assets / "models" / name))
    placement = place(model, "verisilicon_timvx")
    x = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
    form = lite_form(model, placement, minmax_qparams(model, placement, x))
    write_paddle(*form, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    found = convert_to_paddle_lite(tmp_path, "verisilicon_timvx,arm").audit
    assert found.findings == ()
    assert found.fully_on_npu


# --- with a stand-in -------------------------------------------------------------------------------------------------


def one_line(status: int, err: str, *words: str) -> None:
    assert status == 1
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("targets", "words"), [("armm", "did you mean arm"), ("verisilicon_timvx", "write verisilicon_timvx,arm")]
)
def test_wrong_targets(folder, targets: str, words: str) -> None:
    status, _, err = run(folder, "--valid_targets", targets)
    one_line(status, err, words)


def test_no_converter(folder, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    status, _, err = run(folder)
    one_line(status, err, "paddle_lite_opt is not on PATH", "pip install paddlelite")
    assert set(contents(folder)) == FILES


def test_a_converter_that_fails_leaves_nothing(folder, tmp_path_factory) -> None:
    text = "echo '[F 1/2  3:4:5.6 a.cc:7 X] Check failed: no kernel' >&2; exit 134"
    opt = script(tmp_path_factory.mktemp("bin") / "opt", text)
    (folder / "model_arm.nb").write_bytes(b"an earlier one")
    before = contents(folder)
    status, _, err = run(folder, "--paddle-lite-opt", opt)
    one_line(status, err, "opt cannot convert", "m.pdmodel for arm: Check failed: no kernel")
    assert contents(folder) == before


def test_a_converter_whose_second_run_fails_leaves_nothing(folder, tmp_path_factory) -> None:
    text = 'for a; do case $a in --optimize_out=*) o=${a#*=};; esac; done; case "$*" in *naive*) echo x > $o.nb;; esac'
    opt = script(tmp_path_factory.mktemp("bin") / "opt", text)
    status, _, err = run(folder, "--paddle-lite-opt", opt)
    one_line(status, err, "it wrote no file")
    assert set(contents(folder)) == FILES


def test_other_models(folder, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("onnx")
    (other / "m.onnx").write_bytes(b"")
    status, _, err = run(other / "m.onnx")
    one_line(status, err, "is an ONNX model; Paddle Lite reads *.pdmodel")
    assert CliRunner().invoke(app, ["convert", str(folder), "--to", "tflite"]).exit_code == 2
