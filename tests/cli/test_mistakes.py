"""A user's mistakes: one line that names the thing and the remedy, status 1 (or 2 for a wrong command line)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fullquant.cli import eval_script, run_script
from fullquant.cli.console import one_line_errors
from tests.test_cli import fullquant, one_line_error, script, settings, write


def calibration_only(model: Path, data: Path, **keys: object) -> dict:
    """The configuration of test_cli.py with QuantPost in place of the training; `keys` into Global."""
    document = settings(model, data)
    document = {"Global": {**document["Global"], **keys}, "QuantPost": {"algo": "abs_max"}}
    return document


@pytest.fixture
def own_data(tmp_path, data) -> Path:
    """A copy of the images that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "own"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(document) -> (status, stderr) of run.py; the results go to tmp_path/out."""

    def started(document: dict, save_dir: Path | None = None) -> tuple[int, str]:
        path = write(tmp_path / "case.yaml", document)
        arguments = ("--config_path", path, "--save_dir", save_dir or tmp_path / "out", "--devices", "cpu")
        status, _, err = script(run_script, monkeypatch, capsys, *arguments)
        return status, err

    return started


# ---- where the results go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/sub", "/proc/no/such", "dangling"])
def test_save_dir_that_cannot_be_written_is_said_before_any_work(tmp_path, model, data, run, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    status, err = run(calibration_only(model, data), tmp_path / place)
    one_line_error(status, err, f"save_dir {tmp_path / place} ", "name a")
    assert "calibrat" not in err


def test_unwritable_save_dir_leaves_no_probe(tmp_path, model, data, run, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("fullquant.auto_compression.exporting.tempfile.TemporaryFile", refuse)
    status, err = run(calibration_only(model, data))
    one_line_error(status, err, "save_dir", "Permission denied", "name another folder")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_in_the_place_of_the_report(tmp_path, model, data, run):
    (tmp_path / "out" / "report.json").mkdir(parents=True)
    status, err = run(calibration_only(model, data))
    one_line_error(status, err, "report.json is a folder")


def test_system_errors_with_a_file_are_one_line_and_others_are_bugs(capsys):
    for error in (
        PermissionError(errno.EACCES, "Permission denied", "a/b.bin"),
        OSError(errno.ENOSPC, "No space left"),
    ):
        with pytest.raises(typer.Exit) as stopped, one_line_errors():
            raise error
        one_line_error(stopped.value.exit_code, capsys.readouterr().err, str(error.strerror), "free space")
    with pytest.raises(OSError, match="Bad file descriptor"), one_line_errors():
        raise OSError(errno.EBADF, "Bad file descriptor")


# ---- images that do not belong to the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "shape"),
    [
        ({"img_size": 16, "resize_size": 16}, "[3, 16, 16]"),
        ({"channel_order": "grey", "mean": [0.5], "std": [0.5]}, "[1, 8, 8]"),
    ],
)
def test_images_of_another_shape(model, data, run, tmp_path, monkeypatch, capsys, keys, shape):
    document = calibration_only(model, data, **keys)
    status, err = run(document)
    one_line_error(status, err, shape, "classifier.onnx is [3, 8, 8]", "Global.img_size", "Global.channel_order")
    path = write(tmp_path / "eval.yaml", document)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", path)
    one_line_error(status, err, shape, "[3, 8, 8]")


def test_labels_that_count_from_one(model, own_data, run, tmp_path, monkeypatch, capsys):
    with (own_data / "val_list.txt").open("a") as file:
        file.write("images/01.jpg 5\n")
    document = calibration_only(model, own_data)
    status, err = run(document)
    one_line_error(status, err, "val_list.txt: label 5", "5 classes are 0 to 4")
    path = write(tmp_path / "eval.yaml", document)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", path)
    one_line_error(status, err, "val_list.txt: label 5", "5 classes are 0 to 4")


def test_calibration_stops_at_an_image_that_is_not_there(model, own_data, run):
    with (own_data / "train_list.txt").open("a") as file:
        file.write("images/gone.jpg 1\n")
    status, err = run(calibration_only(model, own_data))
    one_line_error(status, err, "gone.jpg does not exist", "on_bad_image")
    assert "skipped" not in err


def test_a_skipped_image_is_counted_once(tmp_path, model, own_data, run):
    (own_data / "images" / "03.jpg").write_bytes(b"no image")
    document = settings(model, own_data)
    document["Global"]["on_bad_image"] = "skip"
    status, err = run(document)
    assert status == 0, err
    # once as a training image and once as a validation image, however many epochs and validations there were
    assert json.loads((tmp_path / "out" / "report.json").read_text())["skipped_images"] == 2
    assert err.count("skipped: ") == 2


def test_verification_of_a_sample_skips_too(model, own_data, run):
    (own_data / "images" / "03.jpg").write_bytes(b"no image")
    status, err = run(calibration_only(model, own_data, on_bad_image="skip", verify_images=19))
    assert status == 0, err


def test_no_validation_image_can_be_read(model, own_data, run, tmp_path, monkeypatch, capsys):
    (own_data / "val_list.txt").write_text("images/00.jpg 1\n")
    (own_data / "images" / "00.jpg").write_bytes(b"no image")
    document = calibration_only(model, own_data, on_bad_image="skip")
    status, err = run(document)
    one_line_error(status, err, "validation data gives no image")
    path = write(tmp_path / "eval.yaml", document)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", path)
    one_line_error(status, err, "val_list.txt: none of its images can be read")


# ---- options and keys that would do nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("option", [("--steps", "5"), ("--learning-rate", "0.1"), ("--resume",)])
def test_training_options_without_training(model, data, option):
    result = fullquant("quantize", model, "--data", data, "--ptq", *option)
    assert result.exit_code == 2, result.output
    assert "belong to training" in " ".join(result.output.replace("│", " ").split())


def test_a_reduced_range_for_onednn(model, data):
    result = fullquant("quantize", model, "--data", data, "--ptq", "--target", "paddle_inference", "--reduce-range")
    one_line_error(result.exit_code, result.stderr, "reduce_range", "paddle_inference")


@pytest.mark.parametrize("command", ["quantize", "inspect"])
def test_a_pattern_that_is_in_every_name(model, data, command):
    more = ("--data", data, "--ptq") if command == "quantize" else ()
    result = fullquant(command, model, *more, "--not-quant-pattern", "")
    assert result.exit_code == 2, result.output


def test_eval_script_measures_in_one_engine(config, monkeypatch, capsys):
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", config, "--engine", "all")
    one_line_error(status, err, "one engine", "fullquant evaluate --engine all")


def test_a_missing_teacher_is_said_before_calibration(model, data, run):
    document = settings(model, data)
    document["Distillation"]["teacher_model_dir"] = "no_teacher"
    status, err = run(document)
    one_line_error(status, err, "no_teacher", "no such file or folder")
    assert "float model" not in err


def test_several_models_in_a_folder(tmp_path, model, config, monkeypatch, capsys):
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(model, tmp_path / name)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", config, "--model_dir", tmp_path)
    one_line_error(status, err, "2 models match (a.onnx, b.onnx)", "model_filename")


@pytest.mark.parametrize(("variables", "speaks"), [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False),
                                                   ({"PADDLE_TRAINER_ID": "3"}, False)])  # fmt: skip
def test_of_several_processes_the_first_says_what_is_wrong_with_the_command_line(variables, speaks):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "PADDLE_TRAINER_ID")} | variables
    command = [sys.executable, str(Path(__file__).parents[2] / "run.py"), "--confg_path", "x"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ("--confg_path" in ended.stderr) == speaks
    assert speaks or not ended.stderr
