"""The record of a run: report.json, its page and its table. Takes plain numbers only."""

from fullquant.errors import ReportError
from fullquant.report.html import to_html, write_html
from fullquant.report.record import (
    CurvePoint,
    FileEntry,
    PlacementSummary,
    Record,
    ResultRow,
    TensorEntry,
    read_record,
    write_record,
)
from fullquant.report.table import results_table

__all__ = [
    "CurvePoint",
    "FileEntry",
    "PlacementSummary",
    "Record",
    "ReportError",
    "ResultRow",
    "TensorEntry",
    "read_record",
    "results_table",
    "to_html",
    "write_html",
    "write_record",
]
