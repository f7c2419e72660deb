from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fullquant.report.chart import line_chart, ticks
from fullquant.report.html import to_html, write_html
from fullquant.report.record import Record, ResultRow
from fullquant.report.table import engine_name, file_size, milliseconds, percent, results_table
from tests.report.test_record import full_record

_VOID = {"meta", "br"}


class Structure(HTMLParser):
    """Fails on tags that are not closed in order; collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_structure_checker_can_fail() -> None:
    with pytest.raises(AssertionError):
        Structure("<p><b></p></b>")


def test_page_is_whole_and_stands_alone() -> None:
    page = Structure(to_html(full_record()))
    assert {"svg", "polyline", "circle", "table", "details"} <= page.tags
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not any(name in ("src", "href") or name.startswith("on") for name, _ in page.attributes)
    assert "url(" not in to_html(full_record())
    for text in (
        "no kernel for <script>alert(1)</script>",
        "models/ocr <cls> & co",
        "The files hold the QAT model: 95.1 against 94.4.",
        "95.40 ±0.47",
        "3 unreadable images",
        "this processor saturates",
        "2 × softmax & co",
        "that of x",
        "0.001 to 0.02 (16)",
        "ab" * 32,
        "61.5 s",
        '"batch_size": 32',
    ):
        assert text in page.text, text


def test_page_of_an_empty_record(tmp_path: Path) -> None:
    record = Record("m", "onnx", {}, "0", {}, {}, ())
    assert "svg" not in Structure(to_html(record)).tags
    write_html(record, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == to_html(record)


@given(st.text())
def test_nothing_escapes(text: str) -> None:
    hostile = text + "<script>&\"'"
    record = full_record(
        model=hostile, kept_reason=hostile, notes=(hostile,), rows=(ResultRow(hostile, hostile, note=hostile),)
    )
    assert "script" not in Structure(to_html(record)).tags


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats()), max_size=40))
def test_chart_is_xml_inside_its_frame(points: list[tuple[float, float]]) -> None:
    chart = line_chart(sorted(points), "a < b & c", "iteration", markers=True)
    if not chart:
        return
    root = ElementTree.fromstring(chart)
    line = root.find("polyline")
    assert line is not None
    for x, y in re.findall(r"([-\d.a-z]+),([-\d.a-z]+)", line.attrib["points"]):
        assert 69.9 <= float(x) <= 624.1
        assert 27.9 <= float(y) <= 204.1


def test_long_curves_stay_small() -> None:
    chart = line_chart([(float(i), float(i % 7)) for i in range(100_000)], "loss", "iteration")
    assert len(chart) < 30_000
    assert line_chart([(0.0, 1.0)], "loss", "iteration") == ""


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_the_range(low: float, span: float) -> None:
    high = low + span
    values = ticks(low, high)
    assert 2 <= len(values) <= 9
    assert values == sorted(values)
    tolerance = 1e-6 * max(abs(low), abs(high), 1)
    assert values[0] <= low + tolerance
    assert values[-1] >= high - tolerance


def test_ticks_are_round() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.93, 0.957) == [0.93, 0.94, 0.95, 0.96]


def _text(rows: tuple[ResultRow, ...], width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(results_table(rows, "Results"))
    return file.getvalue()


def test_table_shows_all_in_eighty_columns() -> None:
    text = _text(full_record().rows)
    for word in (
        "float",
        "PTQ",
        "QAT",
        "onnxruntime optimised",
        "onnxruntime plain",
        "simulated",
        "95.40",
        "97.20",
        "583.0 kB",
        "1.25",
    ):
        assert word in text, word
    assert "…" not in text
    assert "QAT, paddle_onednn: no kernel for <script>alert(1)</script>" in text
    assert "QAT, onnxruntime plain: kept" in text


def test_unused_columns_are_left_out() -> None:
    text = _text((ResultRow("PTQ", "simulated", top1=0.5),))
    assert "top-1" in text
    assert "top-5" not in text
    assert "ms" not in text
    assert _text(()).startswith("Results")


def test_cells() -> None:
    assert percent(0.954) == "95.40"
    assert percent(None) == percent(float("nan")) == milliseconds(None) == milliseconds(float("nan")) == "-"
    assert [file_size(size) for size in (None, 512, 1_500_000)] == ["-", "0.5 kB", "1.50 MB"]
    assert engine_name(ResultRow("QAT", "paddle")) == "paddle"
