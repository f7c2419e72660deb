"""What `fullquant convert` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullquant.auto_compression.conversion import Conversion
from fullquant.runtime.paddle_lite.audit import Audit

_WORDS: Mapping[str, str] = {
    "fallback": "on the processor", "float": "in float", "changed": "changed", "wrong": "computed wrongly",
}  # fmt: skip


def show_conversion(console: Console, made: Conversion) -> None:
    """Where the operators run, what is not as it should be, and the files."""
    console.print(_places(made.audit))
    if made.audit.findings:
        console.print(_findings(made.audit))
    for note in made.audit.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    for line in _summary(made):
        console.print(Text(line), soft_wrap=True)
    for path in (made.file, made.report):
        console.print(Text(f"  {path}  ({path.stat().st_size / 1e6:.2f} MB)"), soft_wrap=True)


def _places(audit: Audit) -> Table:
    table = Table("runs on", "operators", "which", box=None, title=f"Paddle Lite, {','.join(audit.targets)}")
    for number, operators in enumerate(audit.subgraphs, start=1):
        table.add_row(f"NPU, subgraph {number}", str(len(operators)), _counted(Counter(operators)))
    for place, kernels in audit.kernels.items():
        table.add_row(place, str(sum(kernels.values())), _counted(kernels))
    return table


def _findings(audit: Audit) -> Table:
    table = Table("", "operator", "times", "first tensor", "why", box=None)
    counts = Counter((f.kind, f.operator, f.why) for f in audit.findings)
    firsts = {(f.kind, f.operator, f.why): f.tensor for f in reversed(audit.findings)}
    for (kind, operator, why), count in counts.items():
        table.add_row(
            Text(_WORDS[kind], style="red" if kind == "wrong" else "yellow"), Text(operator), str(count),
            Text(firsts[kind, operator, why]), Text(why),
        )  # fmt: skip
    return table


def _summary(made: Conversion) -> list[str]:
    audit, lines = made.audit, []
    if made.quantized:
        lines.append(f"{audit.int8_layers} of {audit.layers} layers have int8 weights and all their scales")
        if audit.same_weights is not None:
            lines.append(
                f"{audit.same_weights} of {audit.layers} have exactly the weights and scales of {made.model.name}"
            )
    if audit.subgraphs:
        share = f"{audit.on_npu} of {audit.operators} operators are on the NPU"
        lines.append(
            f"{share}, in one subgraph" if audit.fully_on_npu else f"{share}, in {len(audit.subgraphs)} subgraphs"
        )
    return lines


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: -item[1]))
