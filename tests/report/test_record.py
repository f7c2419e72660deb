from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.errors import ExportError, ReportError
from fullquant.report.html import write_html
from fullquant.report.machine import machine, package_versions
from fullquant.report.record import (
    CurvePoint,
    FileEntry,
    PlacementSummary,
    Record,
    ResultRow,
    TensorEntry,
    digest,
    file_entry,
    from_json,
    read_record,
    to_json,
    write_record,
)

_shares = st.none() | st.floats(0, 1)


def full_record(**changes: Any) -> Record:
    """A record in which nothing is left at its default."""
    record = Record(
        model="models/ocr <cls> & co",
        model_format="program_desc",
        config={"Global": {"batch_size": 32, "data_dir": None, "mean": [0.5, 0.5]}},
        config_digest="0123456789abcdef",
        versions={"python": "3.11", "torch": "2.13.0"},
        machine={"processor": "<b>fast</b>", "cores": "2"},
        rows=(
            ResultRow("float", "onnxruntime", True, 0.954, 0.0047, 1.0, 1.0, None, 0.0, 2000, "m.onnx", 583_000, 1.25),
            ResultRow("PTQ", "simulated", None, 0.944, 0.005, 1.0, 0.972, 1.0, 0.01, 2000),
            ResultRow("QAT", "onnxruntime", False, 0.951, note="kept"),
            ResultRow("QAT", "paddle_onednn", error="no kernel for <script>alert(1)</script>"),
        ),
        placement=PlacementSummary(
            "paddle_lite", False, {"activation": 139, "weight": 54}, {"activation": 2}, {"softmax & co": 2}
        ),
        tensors=(
            TensorEntry("x", "activation", "int8 [-128, 127]", "the input", 0.0078, 0.0078),
            TensorEntry("conv.w_0", "weight", "int8 [-127, 127]", "per channel", 0.001, 0.02, 16),
            TensorEntry("relu.out", "activation", "int8 [-128, 127]", "moves data", shares="x", fused=True),
            TensorEntry("odd", "activation", "float", "stays float"),
        ),
        curve=tuple(CurvePoint(i, 1 / (i + 1), 1e-3, 0.94 if i % 5 == 0 else None, None) for i in range(20)),
        inputs=(FileEntry("inference.pdmodel", 1000, "ab" * 32),),
        outputs=(FileEntry("model_int8.onnx", 500, "cd" * 32),),
        kept="QAT",
        kept_reason="95.1 against 94.4",
        seconds={"training": 61.5},
        skipped_images=3,
        notes=("this processor saturates",),
        created="2026-01-02T03:04:05+00:00",
    )
    return dataclasses.replace(record, **changes)


def test_round_trip() -> None:
    record = full_record()
    assert from_json(to_json(record)) == record
    minimal = Record("m", "onnx", {}, digest({}), {}, {}, ())
    assert from_json(to_json(minimal)) == minimal


@given(
    _shares, _shares, st.lists(st.tuples(st.integers(0, 10**6), st.none() | st.floats(0, 1e9)), max_size=5), st.text()
)
def test_round_trip_of_any_numbers(top1: float | None, kl: float | None, curve: list[Any], text: str) -> None:
    record = full_record(
        rows=(ResultRow("QAT", text, top1=top1, mean_kl=kl),),
        curve=tuple(CurvePoint(*point) for point in curve),
        notes=(text,),
    )
    assert from_json(to_json(record)) == record


def test_json_is_strict_and_plain() -> None:
    row = ResultRow("QAT", "paddle", top1=math.nan, mean_kl=math.inf, top5=np.float32(0.5), images=np.int64(7))  # type: ignore[arg-type]
    text = to_json(full_record(rows=(row,), config={"path": Path("a/b"), "names": {"b", "a"}, 3: np.float64(0.1)}))
    assert "NaN" not in text
    assert "Infinity" not in text
    value = json.loads(text)
    assert value["rows"][0]["top1"] is None
    assert (value["rows"][0]["top5"], value["rows"][0]["images"]) == (0.5, 7)
    assert value["config"] == {"path": "a/b", "names": ["a", "b"], "3": 0.1}
    with pytest.raises(TypeError, match="ndarray has no place in a report"):
        to_json(full_record(config={"x": np.zeros(3)}))


def test_nan_in_a_required_number_comes_back() -> None:
    back = from_json(to_json(full_record(seconds={"training": math.nan})))
    assert math.isnan(back.seconds["training"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"rows": [{"stage": "QAT", "engine": "x", "colour": 1}]}, "no field 'colour'"),
        ({"rows": [{"stage": "QAT"}]}, "engine"),
        ({"rows": [3]}, "expected an object"),
        ({"kept": 5}, r"Record\.kept is 5"),
        ({"skipped_images": True}, "skipped_images is True"),
        ({"skipped_images": 1.5}, "skipped_images"),
        ({"curve": {"a": 1}}, "curve"),
    ],
)
def test_foreign_reports_are_refused(change: dict[str, Any], message: str) -> None:
    value = {**json.loads(to_json(full_record())), **change}
    with pytest.raises(ReportError, match=message):
        from_json(json.dumps(value))


def test_no_json_at_all(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", "null"):
        with pytest.raises(ReportError):
            from_json(text)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    for name in ("report.json", "absent.json"):
        with pytest.raises(ReportError, match=name):
            read_record(tmp_path / name)


def test_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    write_record(full_record(), path)
    assert read_record(path) == full_record()
    (tmp_path / "plain").write_text("")
    assert os.stat(path).st_mode == os.stat(tmp_path / "plain").st_mode

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportError, match=r"cannot write .*report\.json: disk full"):
        write_record(full_record(kept="other"), path)
    assert read_record(path) == full_record()
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ExportError, match=r"report\.json is a folder"):
        write_record(full_record(), tmp_path / "report.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*file: "):
        write_html(full_record(), tmp_path / "file" / "report.html")


def test_report_error_is_one_of_the_errors() -> None:
    from fullquant import errors, report
    from fullquant.report import record

    assert errors.ReportError.__module__ == "fullquant.errors"
    assert report.ReportError is errors.ReportError
    assert vars(record)["ReportError"] is errors.ReportError


def test_digest_is_of_the_meaning() -> None:
    assert digest({"a": 1, "b": {"c": [1, 2]}}) == digest({"b": {"c": (1, 2)}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({})) == 16


def test_file_entry(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    entry = file_entry(tmp_path / "a")
    assert (entry.bytes, entry.sha256[:8]) == (3, "ba7816bf")


def test_machine_and_versions() -> None:
    info = machine()
    assert all(isinstance(value, str) and value for key, value in info.items() if key != "instruction_sets")
    assert int(info["cores"]) >= 1
    versions = package_versions(("numpy", "surely-not-installed"))
    assert set(versions) == {"python", "numpy"}
