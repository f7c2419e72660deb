"""The table of a benchmark."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullquant.auto_compression.benchmark import Benchmark, BenchmarkRow
from fullquant.report.table import file_size, milliseconds


def show_benchmark(console: Console, found: Benchmark) -> None:
    """A row for each model in each runtime; below it what it was measured on, and the errors."""
    image = "x".join(map(str, (found.batch, *found.image)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"Latency of {image}, {found.threads} thread{'s' * (found.threads > 1)}, {found.repeats} runs each"
    for index, name in enumerate(("engine", "model", "file", "size", "int8 layers", "median ms", "p90 ms", "speedup")):
        table.add_column(name, justify="left" if index < 3 else "right", no_wrap=True)
    for index, row in enumerate(found.rows):
        last = index + 1 < len(found.rows) and found.rows[index + 1].engine != row.engine
        table.add_row(*map(Text, _cells(row)), end_section=last)
    console.print(table)
    console.print()
    for row in found.rows:
        if row.error:
            console.print(Text(f"{row.engine}, {row.variant}: {row.error}", style="red"), soft_wrap=True)
    facts = [found.machine.get(key, "") for key in ("processor", "instruction_sets")]
    console.print(Text(", ".join(fact for fact in facts if fact), style="dim"), soft_wrap=True)


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    speedup = "-" if row.speedup is None or row.variant == "float" else f"{row.speedup:.2f}x"
    return (
        row.engine, row.variant, row.file, file_size(row.file_bytes), _layers(row), milliseconds(row.median_ms),
        milliseconds(row.p90_ms), speedup,
    )  # fmt: skip


def _layers(row: BenchmarkRow) -> str:
    if row.integer_layers is None or row.float_layers is None:
        return "-"
    return f"{row.integer_layers} of {row.integer_layers + row.float_layers}"
