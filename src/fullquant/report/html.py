"""report.html: the record as one page that needs nothing else, no network and no script."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fullquant.report.chart import line_chart
from fullquant.report.record import (
    CurvePoint,
    FileEntry,
    PlacementSummary,
    Record,
    ResultRow,
    TensorEntry,
)
from fullquant.report.table import PAGE_COLUMNS, file_size, used_columns
from fullquant.writers.atomic import write_atomically

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #2a78d6; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.stage td { border-top: 2px solid var(--line); }
.error { color: #c62f2f; } .quiet { opacity: .75; }
svg { width: 100%; max-width: 40rem; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } svg .title { font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke: var(--mark); stroke-width: 1.8; }
svg circle { fill: var(--mark); }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); }
code { overflow-wrap: anywhere; }
"""


def to_html(record: Record) -> str:
    """The page as text. Everything that comes from the record is escaped."""
    title = f"fullquant: {os.path.basename(os.path.normpath(record.model)) or record.model}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet"><code>{escape(record.model)}</code> ({escape(record.model_format)}), '
        f"{escape(record.created)}, settings {escape(record.config_digest)}</p>",
        _verdict(record),
        _section("Results", _results(record.rows)),
        _section("Training", _curves(record.curve)),
        _section("Placement", _placement(record.placement, record.tensors)),
        _section("Files", _files(record.inputs, record.outputs)),
        _section("Time", _pairs({name: f"{value:.1f} s" for name, value in record.seconds.items()})),
        _section("Machine", _pairs(record.machine)),
        _section("Versions", _pairs(record.versions)),
        _section("Settings", f"<pre>{escape(_settings(record.config))}</pre>"),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def write_html(record: Record, path: str | os.PathLike[str]) -> None:
    """Write the page; readers see the old file or the new one, never a part. Raises ExportError naming the file."""
    write_atomically(path, to_html(record).encode("utf-8"))


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def _verdict(record: Record) -> str:
    lines = []
    if record.kept:
        reason = f": {record.kept_reason}" if record.kept_reason else ""
        lines.append(f"The files hold the {record.kept} model{reason}.")
    if record.skipped_images:
        lines.append(f"{record.skipped_images} unreadable images were left out.")
    lines += record.notes
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _results(rows: Sequence[ResultRow]) -> str:
    if not rows:
        return ""
    columns = used_columns(rows, PAGE_COLUMNS)
    head = [(name, index > 1) for index, (name, _) in enumerate(columns)] + [("images", True), ("note", False)]
    body, stage = [], rows[0].stage
    for row in rows:
        cells = [_cell(cell(row), number=index > 1) for index, (_, cell) in enumerate(columns)]
        cells.append(_cell(str(row.images or "-"), number=True))
        cells.append(f'<td class="error">{escape(row.error)}</td>' if row.error else _cell(row.note))
        body.append(f'<tr class="{"stage" if row.stage != stage else "row"}">{"".join(cells)}</tr>')
        stage = row.stage
    return _table(head, body)


def _curves(curve: Sequence[CurvePoint]) -> str:
    loss = [(float(point.iteration), point.loss) for point in curve if point.loss is not None]
    top1 = [(float(point.iteration), 100 * point.top1) for point in curve if point.top1 is not None]
    agreement = [(float(point.iteration), 100 * point.agreement) for point in curve if point.agreement is not None]
    return (
        line_chart(loss, "loss", "iteration")
        + line_chart(top1, "top-1 on the validation images, %", "iteration", markers=True)
        + line_chart(agreement, "agreement with the float model, %", "iteration", markers=True)
    )


def _placement(summary: PlacementSummary | None, tensors: Sequence[TensorEntry]) -> str:
    if summary is None:
        return ""
    kinds = list(dict.fromkeys([*summary.quantized, *summary.kept_float]))
    rows = [
        f"<tr>{_cell(kind)}{_cell(str(summary.quantized.get(kind, 0)), number=True)}"
        f"{_cell(str(summary.kept_float.get(kind, 0)), number=True)}</tr>"
        for kind in kinds
    ]
    whole = "every tensor from the input to the output is integer" if summary.full_integer else "part of it stays float"
    parts = [
        f"<p>Target {escape(summary.target)}: {whole}.</p>",
        _table([("tensors", False), ("integer", True), ("float", True)], rows),
    ]
    if summary.float_reasons:
        reasons = "".join(
            f"<li>{count} &times; {escape(reason)}</li>" for reason, count in summary.float_reasons.items()
        )
        parts.append(f"<p>Why tensors stay float:</p><ul>{reasons}</ul>")
    if tensors:
        head = [("tensor", False), ("kind", False), ("grid", False), ("scale", True), ("reason", False)]
        body = [_tensor(entry) for entry in tensors]
        parts.append(f"<details><summary>All {len(tensors)} tensors</summary>{_table(head, body)}</details>")
    return "".join(parts)


def _tensor(entry: TensorEntry) -> str:
    if entry.shares is not None:
        scale = f"that of {entry.shares}"
    elif entry.scale_min is None or entry.scale_max is None:
        scale = "-"
    elif entry.channels > 1:
        scale = f"{entry.scale_min:.3g} to {entry.scale_max:.3g} ({entry.channels})"
    else:
        scale = f"{entry.scale_min:.6g}"
    grid = f"{entry.grid}, fused" if entry.fused else entry.grid
    cells = [_cell(entry.tensor), _cell(entry.kind), _cell(grid), _cell(scale, number=True), _cell(entry.reason)]
    return f"<tr>{''.join(cells)}</tr>"


def _files(inputs: Sequence[FileEntry], outputs: Sequence[FileEntry]) -> str:
    rows = [
        f"<tr>{_cell(role)}<td><code>{escape(entry.path)}</code></td>{_cell(file_size(entry.bytes), number=True)}"
        f"<td><code>{escape(entry.sha256)}</code></td></tr>"
        for role, entries in (("read", inputs), ("written", outputs))
        for entry in entries
    ]
    return _table([("", False), ("file", False), ("size", True), ("SHA-256", False)], rows) if rows else ""


def _pairs(values: Mapping[str, str]) -> str:
    rows = [f"<tr>{_cell(name)}{_cell(str(value))}</tr>" for name, value in values.items()]
    return _table([], rows) if rows else ""


def _settings(config: Mapping[str, object]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False, default=str)


def _table(head: Sequence[tuple[str, bool]], rows: Iterable[str]) -> str:
    titles = "".join(f'<th class="{"number" if number else "text"}">{escape(name)}</th>' for name, number in head)
    header = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{header}<tbody>{"".join(rows)}</tbody></table></div>'


def _cell(text: str, *, number: bool = False) -> str:
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"
