"""The size of a float model whose weights lie beside the ONNX file, and its files in the report."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fullquant.auto_compression.benchmark import benchmark
from fullquant.auto_compression.evaluate import evaluate
from fullquant.auto_compression.inspection import inspect_model
from tests.graphs import small_classifier
from tests.test_cli import data, fullquant, settings

__all__ = ["data"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    proto = ir.to_proto(small_classifier())
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    (path.parent / "unrelated.bin").write_bytes(b"12345")
    return path


@pytest.fixture(scope="module")
def written(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    options = ("--data", data, "--ptq", "--verify-images", 2, "--save-dir", out, "--devices", "cpu")
    result = fullquant("quantize", model, *options)
    assert result.exit_code == 0, result.output
    return out


def whole(model: Path) -> int:
    sizes = [path.stat().st_size for path in (model, model.parent / "weights.bin")]
    assert min(sizes) > 1000
    return sum(sizes)


def test_the_report_counts_and_lists_the_data_file(model: Path, written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    assert [row["file_bytes"] for row in report["rows"] if row["stage"] == "float"] == [whole(model)]
    assert [Path(entry["path"]).name for entry in report["inputs"]] == ["model.onnx", "weights.bin"]
    assert sum(entry["bytes"] for entry in report["inputs"]) == whole(model)


def test_benchmark_evaluate_and_inspect_count_it(model: Path, written: Path, data: Path) -> None:
    measured = benchmark(written, engines=("onnxruntime",), repeats=1, progress=False)
    assert [row.file_bytes for row in measured.rows if row.variant == "float"] == [whole(model)]
    assert inspect_model(model).file_bytes == whole(model)
    (row,) = evaluate({"Global": settings(model, data)["Global"]}, progress=False)
    assert row.file_bytes == whole(model)
