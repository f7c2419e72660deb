"""The document of `fullquant inspect --json`, and what it says of a model."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from fullquant.auto_compression.inspected_nodes import NodeEntry
from fullquant.auto_compression.inspection import (
    SCHEMA_VERSION,
    FallbackEntry,
    Inspection,
    OperatorCount,
    TensorShape,
    inspect_model,
)
from fullquant.cli.show_inspection import show_inspection
from fullquant.report.record import PlacementSummary, TensorEntry
from fullquant.writers.onnx_qdq import write_float_onnx
from tests.graph.toy_models import parse
from tests.graphs import small_classifier
from tests.readers.test_keras_style import keras_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "classifier.onnx"
    write_float_onnx(small_classifier(), path)
    return path


def test_the_document_says_every_field() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs" / "inspect.md").read_text(), re.MULTILINE)
    fields = {name for first, _ in rows for name in re.findall(r"`(\w+)`", first)}
    assert fields == {field.name for field in dataclasses.fields(Inspection)}
    everything = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    for part in (TensorShape, OperatorCount, FallbackEntry, NodeEntry, PlacementSummary, TensorEntry):
        assert {field.name for field in dataclasses.fields(part)} <= everything, part
    assert f"(now {SCHEMA_VERSION})" in (ROOT / "docs" / "inspect.md").read_text()


def test_what_a_target_computes_in_float_is_named(model: Path) -> None:
    found = inspect_model(model, "paddle_lite")
    named = {name for entry in found.fallback for name in entry.nodes}
    assert named == {node.name for node in found.nodes if node.placed != "int8"}
    assert all(entry.reason for entry in found.fallback)
    assert found.placement is not None
    assert found.placement.full_integer
    assert found.multiply_adds == sum(node.multiply_adds or 0 for node in found.nodes)
    assert found.multiply_adds == sum((found.multiply_adds_by_kind or {}).values())
    assert found.parameters * 4 <= found.weight_bytes  # constants of Reshape and the like are no parameters
    assert (found.weight_bytes_int8 or 0) < found.weight_bytes
    assert found.verdict.startswith("suits paddle_lite")


def test_inspection_needs_no_pytorch(model: Path) -> None:
    code = (
        "import sys; from fullquant.auto_compression.inspection import inspect_model; inspect_model(sys.argv[1]); "
        "print([name for name in ('torch', 'numba', 'paddle') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_order_of_the_axes_is_told(model: Path, tmp_path: Path) -> None:
    assert inspect_model(model).input_layout == "NCHW"
    keras = keras_model(tmp_path / "keras.onnx", "clip")
    found = inspect_model(keras)
    assert found.input_layout == "NHWC"
    assert found.inputs[0].shape == ("N", 3, 24, 24)
    text = io.StringIO()
    show_inspection(Console(file=text, width=200), found)
    assert re.search(r"^input layout +NHWC .*take NCHW$", text.getvalue(), re.MULTILINE)


def test_nhwc_that_no_transpose_reads_is_kept(tmp_path: Path) -> None:
    kept = parse(
        "g (float[N,8,8,3] x, float[192,4] w) => (float[N,4] y) { f = Flatten(x)  m = MatMul(f, w)  y = Relu(m) }",
        w=np.ones((192, 4), np.float32),
    )
    onnx.save(ir.to_proto(kept), tmp_path / "kept.onnx")
    assert inspect_model(tmp_path / "kept.onnx").input_layout == "NHWC kept"
