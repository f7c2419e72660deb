"""`fullquant benchmark`: what runs, in which order, and what is said of what does not."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from fullquant.auto_compression import benchmark as module
from fullquant.auto_compression.benchmark import benchmark
from fullquant.cli.app import app
from fullquant.errors import ConfigError, EngineError, ModelError
from fullquant.report.record import as_json
from tests.auto_compression.saved_models import placed, write_all

PADDLE = importlib.util.find_spec("paddle") is not None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("saved"), *placed())


class Runtime:
    """An engine that takes a known time, and remembers when it ran."""

    calls: ClassVar[list[str]] = []

    def __init__(self, name: str, seconds: float, fails_after: int = 10**9) -> None:
        self.engine, self.input_names, self.output_names = name, ("x",), ("y",)
        self._name, self._seconds, self._left = name, seconds, fails_after

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._left -= 1
        if self._left < 0:
            raise EngineError(f"{self._name} has had enough")
        Runtime.calls.append(self._name)
        time.sleep(self._seconds)
        return [np.zeros((len(feeds["x"]), 5), np.float32)]


def faked(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], fails: dict[str, int] | None = None) -> None:
    """seconds: by file name and engine."""

    def opened(path: Any, engine: str, **_: Any) -> Runtime:
        name = f"{engine} {Path(path).name}"
        if name not in seconds:
            raise EngineError(f"{name} is refused")
        return Runtime(name, seconds[name], (fails or {}).get(name, 10**9))

    Runtime.calls = []
    monkeypatch.setattr(module, "open_session", opened)
    monkeypatch.setattr(module, "available_engines", lambda: ("onnxruntime", "openvino"))


def test_models_take_turns(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A B A B, and each turn begins with a run that is not timed."""
    faked(monkeypatch, {"onnxruntime model.onnx": 0.004, "onnxruntime model_int8.onnx": 0.001})
    found = benchmark(
        saved, reference=saved.parent / "float", engines=("onnxruntime",), repeats=12, batch=2, progress=False
    )
    assert [(row.engine, row.variant, len(row.milliseconds)) for row in found.rows] == [
        ("onnxruntime", "float", 12), ("onnxruntime", "int8", 12),
    ]  # fmt: skip
    turns = [name for index, name in enumerate(Runtime.calls) if index == 0 or Runtime.calls[index - 1] != name]
    assert turns == ["onnxruntime model.onnx", "onnxruntime model_int8.onnx"] * 4  # the warm-up and three turns
    per_model = 3 + (1 + 5) + (1 + 5) + (1 + 2)
    assert len(Runtime.calls) == 2 * per_model
    slow, fast = found.rows
    assert slow.median_ms is not None
    assert fast.median_ms is not None
    assert 4 <= slow.median_ms <= slow.p90_ms  # type: ignore[operator]
    assert fast.speedup == pytest.approx(slow.median_ms / fast.median_ms)
    assert fast.speedup > 2
    assert (found.batch, found.image, found.threads) == (2, (3, 8, 8), 1)


def test_a_runtime_that_refuses_or_fails_is_a_row(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"onnxruntime model.onnx": 0.0, "onnxruntime model_int8.onnx": 0.0, "openvino model.onnx": 0.0}
    faked(monkeypatch, names, {"onnxruntime model_int8.onnx": 6})
    found = benchmark(saved, reference=saved.parent / "float", repeats=9, progress=False)
    errors = {(row.engine, row.variant): row.error for row in found.rows}
    assert errors == {
        ("onnxruntime", "float"): "", ("onnxruntime", "int8"): "onnxruntime model_int8.onnx has had enough",
        ("openvino", "float"): "", ("openvino", "int8"): "openvino model_int8.onnx is refused",
    }  # fmt: skip
    assert all((row.median_ms is None) == bool(row.error) for row in found.rows)
    assert json.loads(as_json(found))["rows"][1]["error"]


def test_real_runtimes(saved: Path, tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    arguments = ["benchmark", str(saved), "--repeats", "3", "--threads", "2", "--json", str(times)]
    done = CliRunner().invoke(app, [*arguments, "--reference", str(saved.parent / "float")])
    assert done.exit_code == 0, done.output
    assert "Latency of 1x3x8x8, 2 threads, 3 runs each" in done.stdout
    rows = {(row["engine"], row["variant"]): row for row in json.loads(times.read_text())["rows"]}
    int8 = rows["onnxruntime", "int8"]
    assert (int8["integer_layers"], int8["float_layers"]) == (6, 0)
    assert rows["onnxruntime", "float"]["float_layers"] == 6
    assert int8["file_bytes"] == (saved / "model_int8.onnx").stat().st_size
    assert int8["operators"]["QLinearConv"] == 5
    assert ("paddle", "float") not in rows  # an ONNX file is no Paddle program
    if PADDLE:
        sizes = [(saved / f"inference.{end}").stat().st_size for end in ("pdmodel", "pdiparams")]
        assert rows["paddle_onednn", "int8"]["file_bytes"] == sum(sizes)
        assert rows["paddle_onednn", "int8"]["speedup"] is None


def test_one_file(saved: Path) -> None:
    found = benchmark(saved / "model_int8.onnx", engines=("onnxruntime",), repeats=1, progress=False)
    assert [(row.engine, row.variant, row.file) for row in found.rows] == [("onnxruntime", "int8", "model_int8.onnx")]


def test_what_cannot_be_measured_is_one_line(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'paddle_lite' is not measured; it is one of onnxruntime"):
        benchmark(saved, engines=("paddle_lite",))
    with pytest.raises(ModelError, match="no model here"):
        benchmark(tmp_path)
    with pytest.raises(ModelError, match=r"holds model.onnx, but neither model_int8.onnx nor a .pdmodel"):
        benchmark(saved.parent / "float")
    with pytest.raises(ModelError, match="no such file or folder"):
        benchmark(saved, reference=tmp_path / "missing")
    done = CliRunner().invoke(app, ["benchmark", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_no_runtime_took_the_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, {})
    done = CliRunner().invoke(app, ["benchmark", str(saved), "--repeats", "1"])
    assert done.exit_code == 1
    assert "is refused" in done.stdout


def test_free_sizes(saved: Path, ocr_model_dir: Path, tmp_path: Path) -> None:
    """Height and width that the model leaves free come from the command, else from the report."""
    from fullquant.auto_compression.saved import find_saved, image_shape
    from fullquant.passes import prepare
    from fullquant.readers import read_model
    from fullquant.writers.onnx_qdq import write_float_onnx

    write_float_onnx(prepare(read_model(ocr_model_dir)), tmp_path / "model_int8.onnx")
    found = find_saved(tmp_path)
    with pytest.raises(ConfigError, match="give --img-size"):
        image_shape(found)
    assert image_shape(found, (48, 192)) == (3, 48, 192)
    assert image_shape(find_saved(saved), (48, 192)) == (3, 8, 8)
