"""`fullquant inspect`: its fields as documented, its numbers, what stays float, and what needs no PyTorch."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from fullquant.auto_compression.inspected_nodes import FallbackEntry, NodeEntry, OperatorCount
from fullquant.auto_compression.inspection import SCHEMA_VERSION, Inspection, inspect_model
from fullquant.cli.app import app
from fullquant.placement.place import PlacementOptions
from tests.auto_compression.saved_models import placed, write_all
from tests.graphs import graph, small_classifier

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "inspect.md"
DOCUMENTED = {
    "Inspection": Inspection, "OperatorCount": OperatorCount, "NodeEntry": NodeEntry, "FallbackEntry": FallbackEntry,
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,), "text": (str,), "number": (int, float), "true or false": (bool,), "list": (list,),
    "mapping": (dict,), "null": (type(None),),
}  # fmt: skip


def fields_of(heading: str) -> dict[str, str]:
    """{field: type} of one table of the document."""
    part = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", part, flags=re.M)
    return {name.strip("`"): kind for names, kind in rows for name in names.split(", ")}


def wrong_fields(found: dict[str, Any], heading: str) -> list[str]:
    """Fields that are missing, not documented, or of another type than the document says."""
    fields = fields_of(heading)
    problems = list(set(fields) ^ set(found))
    for name in set(fields) & set(found):
        kinds = [kind for kind in TYPES if re.match(kind, fields[name])] + ["null"] * ("or null" in fields[name])
        allowed = tuple(kind for name_ in kinds for kind in TYPES[name_])
        if not isinstance(found[name], allowed) or (isinstance(found[name], bool) and bool not in allowed):
            problems.append(f"{name}: {found[name]!r} is not {fields[name]}")
    return problems


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "classifier.onnx"
    ir.save(small_classifier(), path)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("written") / "out", *placed())


def printed(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_is_as_documented(model, written) -> None:
    for found in (printed(model), printed(model, "--target", "rknn"), printed(written / "model_int8.onnx")):
        assert found["schema_version"] == SCHEMA_VERSION == 1
        assert wrong_fields(found, "Inspection") == []
        for heading, key in (("OperatorCount", "operators"), ("NodeEntry", "nodes"), ("FallbackEntry", "fallback")):
            assert [problem for entry in found[key] for problem in wrong_fields(entry, heading)] == []


def test_the_check_of_fields_finds_wrong_ones(model) -> None:
    found = printed(model)
    assert wrong_fields({**found, "parameters": "many"}, "Inspection")
    assert wrong_fields({**found, "more": 1}, "Inspection") == ["more"]
    assert wrong_fields({k: v for k, v in found.items() if k != "verdict"}, "Inspection") == ["verdict"]


@pytest.mark.parametrize("heading", DOCUMENTED)
def test_each_field_is_documented_and_no_other(heading) -> None:
    assert set(fields_of(heading)) == {field.name for field in dataclasses.fields(DOCUMENTED[heading])}


def test_numbers_add_up(model) -> None:
    found = inspect_model(model)
    assert found.multiply_adds == sum(node.multiply_adds or 0 for node in found.nodes)
    assert found.multiply_adds == sum((found.multiply_adds_by_kind or {}).values())
    assert found.multiply_adds_by_kind == {"Conv": 64 * (27 * 8 + 8 * 8) + 64, "Conv depthwise": 64 * 72, "Gemm": 40}
    # five convolutions and the classifier, weights and biases
    assert found.parameters == 216 + 8 + 72 + 8 + 32 + 4 + 32 + 8 + 64 + 8 + 40 + 5
    assert found.parameters == sum(entry.parameters for entry in found.operators)


def test_the_estimated_size_is_near_the_written_one(model, written) -> None:
    estimate = inspect_model(model).weight_bytes_int8
    assert estimate is not None
    tensors = 6 * 3 + 6 + 2 * 18  # headers of 26 bytes, which the estimate leaves out
    assert estimate == pytest.approx((written / "inference.pdiparams").stat().st_size - 26 * tensors, rel=0.15)


def test_float_operators_by_name_and_reason(model) -> None:
    found = inspect_model(model, "paddle_lite")
    groups = {group.operator: group for group in found.fallback}
    assert set(groups) == {"GlobalAveragePool", "HardSigmoid", "Mul", "Add", "HardSwish", "Flatten", "Softmax"}
    assert groups["GlobalAveragePool"].nodes == ("GlobalAveragePool_4", "GlobalAveragePool_13")
    assert "paddle_lite has no int8 kernel" in groups["Mul"].reason
    assert found.suits == "yes"
    assert found.verdict.startswith("suits paddle_lite: 100.0% of the multiply-adds are in int8; ")
    whole = inspect_model(model, "verisilicon_timvx")
    assert (whole.suits, whole.fallback) == ("yes", ())
    assert whole.verdict.endswith("operators are computed in int8")


def test_what_a_pattern_keeps_float_is_no_int8(model) -> None:
    whole = inspect_model(model, "verisilicon_timvx")
    found = inspect_model(model, "verisilicon_timvx", options=PlacementOptions(skip_patterns=("Conv_0",)))
    first = next(node for node in found.nodes if node.name == "Conv_0")
    assert first.placed == "float"
    assert found.multiply_adds is not None
    assert first.multiply_adds is not None
    assert found.int8_share == pytest.approx(1 - first.multiply_adds / found.multiply_adds)
    assert whole.int8_share == 1.0
    assert found.suits in ("partly", "no")


def test_all_operators_without_a_rule_are_named_at_once(tmp_path) -> None:
    nodes = [("Cos", ["x"], ["a"], {}), ("Sin", ["a"], ["b"], {}), ("Cos", ["b"], ["c"], {}),
             ("GlobalAveragePool", ["c"], ["p"], {}), ("Reshape", ["p", "shape"], ["y"], {})]  # fmt: skip
    ir.save(graph(nodes, {"shape": np.array([0, -1])}), tmp_path / "odd.onnx")
    found = inspect_model(tmp_path / "odd.onnx")
    assert "'Cos' (2 nodes, the first 'Cos_0'), 'Sin' (node 'Sin_1')" in found.refusal
    assert "keep them float with QuantAware.not_quant_pattern" in found.refusal
    assert found.suits == "no"
    assert "no int8 rule for Cos (2), Sin (1)" in found.verdict


def test_quantized_files_say_what_they_are(model, written) -> None:
    float_model = inspect_model(model)
    for name, form in (("model_int8.onnx", "ONNX QDQ, written by fullquant for paddle_lite"),
                       ("inference.pdmodel", "Paddle with quantize_linear operators")):  # fmt: skip
        found = inspect_model(written / name)
        assert (found.quantized, found.suits) == (True, "quantized")
        assert found.quantized_as.startswith(form)
        assert found.multiply_adds == float_model.multiply_adds
        assert found.parameters == float_model.parameters
        assert found.placement is not None
        assert found.placement.full_integer
        assert "nothing to quantize" in found.verdict


def test_text_ends_in_the_verdict(model) -> None:
    result = CliRunner().invoke(app, ["inspect", str(model), "--operators", "--tensors"])
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().splitlines()[-1].startswith("verdict: suits paddle_lite")
    assert "computed in float:" in result.stdout


def test_no_pytorch_is_loaded(model) -> None:
    code = (
        "import sys; from fullquant.auto_compression.inspection import inspect_model\n"
        f"inspect_model({str(model)!r}); print([n for n in ('torch', 'numba', 'onnxruntime') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
