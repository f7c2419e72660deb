"""The table that ends a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fullquant.report.record import ResultRow

Column = tuple[str, Callable[[ResultRow], str]]


def percent(share: float | None, digits: int = 2) -> str:
    """0.954 -> "95.40"; "-" where nothing was measured."""
    return "-" if share is None or share != share else f"{100 * share:.{digits}f}"


def file_size(size: int | None) -> str:
    """Bytes in decimal units: "1.23 MB"."""
    if size is None:
        return "-"
    return f"{size / 1e6:.2f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"


def milliseconds(value: float | None) -> str:
    """Two decimals, or "-"."""
    return "-" if value is None or value != value else f"{value:.2f}"


def engine_name(row: ResultRow) -> str:
    """The engine, with its optimisations where they can be switched."""
    if row.optimised is None:
        return row.engine
    return f"{row.engine} {'optimised' if row.optimised else 'plain'}"


def _top1_with_error(row: ResultRow) -> str:
    stderr = "" if row.top1_stderr is None or row.top1 is None else f" ±{100 * row.top1_stderr:.2f}"
    return percent(row.top1) + stderr


def _divergence(row: ResultRow) -> str:
    return "-" if row.mean_kl is None or row.mean_kl != row.mean_kl else f"{row.mean_kl:.4f}"


# Eight columns fit a terminal of 80 characters; the page has room for all.
TERMINAL_COLUMNS: tuple[Column, ...] = (
    ("stage", lambda row: row.stage),
    ("engine", engine_name),
    ("top-1", lambda row: percent(row.top1)),
    ("top-5", lambda row: percent(row.top5)),
    ("agree", lambda row: percent(row.agreement)),
    ("= sim", lambda row: percent(row.same_as_simulated)),
    ("size", lambda row: file_size(row.file_bytes)),
    ("ms", lambda row: milliseconds(row.latency_ms)),
)
PAGE_COLUMNS: tuple[Column, ...] = (
    ("stage", lambda row: row.stage),
    ("engine", engine_name),
    ("top-1 %", _top1_with_error),
    ("top-5 %", lambda row: percent(row.top5)),
    ("agreement with float %", lambda row: percent(row.agreement)),
    ("agreement with simulation %", lambda row: percent(row.same_as_simulated)),
    ("mean KL", _divergence),
    ("file", lambda row: file_size(row.file_bytes)),
    ("ms an image", lambda row: milliseconds(row.latency_ms)),
)
_ALWAYS = ("stage", "engine", "top-1", "top-1 %")


def used_columns(rows: Sequence[ResultRow], columns: Sequence[Column]) -> list[Column]:
    """The columns in which at least one row has something, and the first three in any case."""
    return [(title, cell) for title, cell in columns if title in _ALWAYS or any(cell(row) != "-" for row in rows)]


def results_table(rows: Sequence[ResultRow], title: str = "") -> Table:
    """A rich table: float, PTQ, QAT; simulated and exported. A gap parts the stages; notes and errors stand below.

    Shares are in percent; "agree" is the same argmax as the float model, "= sim" the same as the simulation.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"{title or 'Results'} (shares in percent)"
    columns = used_columns(rows, TERMINAL_COLUMNS)
    for index, (name, _) in enumerate(columns):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for index, row in enumerate(rows):
        last_of_stage = index + 1 < len(rows) and rows[index + 1].stage != row.stage
        table.add_row(*(Text(cell(row)) for _, cell in columns), end_section=last_of_stage)
    remarks = [(row, row.error or row.note) for row in rows if row.error or row.note]
    if remarks:
        lines = [
            Text(f"{row.stage}, {engine_name(row)}: {remark}", style="red" if row.error else "")
            for row, remark in remarks
        ]
        table.caption, table.caption_justify = Text("\n").join(lines), "left"
    return table
