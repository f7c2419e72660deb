"""quantize() in two processes gives what it gives in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml
from PIL import Image

from tests.distributed import toys
from tests.distributed.launching import ROOT, Ended, run
from tests.graphs import small_classifier

PROGRAMS = ("-m", "tests.distributed.programs")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, images of noise with labels, and a configuration of four steps of eight images."""
    folder = tmp_path_factory.mktemp("whole")
    onnx.save(ir.to_proto(small_classifier()), folder / "model.onnx")
    rng = np.random.default_rng(0)
    for split, count in (("train", 70), ("val", 21)):
        (folder / split).mkdir()
        lines = []
        for k in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / split / f"{k}.png")
            lines.append(f"{split}/{k}.png {k % 5}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    return folder


def _config(folder: Path, batch_size: int) -> Path:
    # Scales that learn so slowly stay what they are: at 1e-2 a step brings some to the very end of the slack of 1% at
    # which a short scale becomes the next one, and the last bits of a gradient decide.
    settings = {
        "Global": {
            "model_dir": str(folder / "model.onnx"), "data_dir": str(folder), "batch_size": batch_size, "img_size": 8,
            "resize_size": 9,
        },
        "Distillation": {"loss": "soft_label"},
        "QuantAware": {
            "target": "onnxruntime", "scale_learning_rate": 1e-3,
            "calibration": {"observer": "auto", "calibration_images": 70},
        },
        "TrainConfig": {
            "train_iter": 4, "eval_iter": 2, "learning_rate": 1e-4, "base_batch_size": 8, "logging_iter": 1,
            "optimizer_builder": {"optimizer": {"type": "Adam"}},
        },
    }  # fmt: skip
    path = folder / f"config{batch_size}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


Runs = tuple[list[Ended], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(project: Path) -> Runs:
    """How two processes with four images a step ended; and the results of one with eight, and of those two."""
    command = [*PROGRAMS, "whole", _config(project, 4), project / "two"]
    both = run(command, variables={"NUMBA_NUM_THREADS": "2"})
    assert [ended.status for ended in both] == [0, 0], both[0].stderr + both[1].stderr
    alone = toys.quantized(_config(project, 8), project / "one")
    return both, [alone, *(json.loads(ended.stdout.splitlines()[-1]) for ended in both)]


def test_two_processes_quantize_as_one_does(project: Path, runs: Runs) -> None:
    _, (alone, first, second) = runs
    assert first["curve"] == second["curve"]
    assert [row[0] for row in first["curve"]] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(_numbers(first["curve"]), _numbers(alone["curve"]), atol=1e-5)
    one, two = (json.loads((project / name / "report.json").read_text()) for name in ("one", "two"))
    assert two["kept"] == one["kept"]
    scales = [[entry["scale_max"] or 0.0 for entry in report["tensors"]] for report in (one, two)]
    np.testing.assert_allclose(scales[1], scales[0], rtol=1e-5)
    assert [row["images"] for row in two["rows"]] == [row["images"] for row in one["rows"]]
    assert not (project / "two" / ".checkpoint.pt").exists()


def test_numba_does_not_take_the_cores_of_the_other_process(runs: Runs) -> None:
    _, (_, first, second) = runs
    assert first["threads"] == second["threads"] == 1


def test_process_0_alone_logs(runs: Runs) -> None:
    (first, second), _ = runs
    for words in ("2 processes, 8 images a step", "batch size 8 against base_batch_size 8", "step 4: ", "written: "):
        assert words in first.stderr
        assert words not in second.stderr


def test_a_users_batches_and_callback(runs: Runs) -> None:
    """Each process brings its own batches; the callback runs in process 0 alone."""
    _, (alone, first, second) = runs
    assert first["own"] == second["own"]
    np.testing.assert_allclose(_numbers(first["own"]), _numbers(alone["own"]), atol=1e-5)
    assert first["calls"] == alone["calls"] > 0
    assert second["calls"] == 0


def _numbers(curve: list[list[float | None]]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row] for row in curve])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "paddle.distributed.launch"])
def test_run_py_under_a_launcher(launcher: str, project: Path, tmp_path: Path) -> None:
    pytest.importorskip(launcher.split(".")[0])
    config = _config(project, 4)
    logs = ["--log_dir", tmp_path / "logs"] if launcher.startswith("paddle") else []
    script = [ROOT / "run.py", "--config_path", config, "--save_dir", tmp_path / "out", "--devices", "cpu"]
    (ended,) = run(["-m", launcher, "--nproc_per_node", "2", *logs, *script], 1, timeout=300)
    assert ended.status == 0, ended.stdout + ended.stderr
    assert (tmp_path / "out" / "report.json").is_file()
    assert ended.stdout.count("kept: ") + ended.stderr.count("kept: ") == 1
