"""The table of a verification, and what explains the differences."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullquant.auto_compression.verify_saved import EngineCheck, Verification
from fullquant.report.table import percent
from fullquant.runtime.departure import FAR, Difference


def show_verification(console: Console, found: Verification) -> None:
    """A line for each engine; then findings in the files, what differs where and why, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"{found.images} images (shares in percent)"
    for index, name in enumerate(("engine", "file", "top-1", "= sim", "KL", "steps", "")):
        table.add_column(name, justify="left" if index in (0, 1, 6) else "right", no_wrap=True)
    for check in found.checks:
        bad = bool(check.failures or check.error)
        table.add_row(*map(Text, _cells(check)), Text("no" if bad else "ok", style="red" if bad else ""))
    console.print(table)
    console.print()
    for text, style in _remarks(found):
        console.print(Text(text, style=style), soft_wrap=True)
    if found.passed:
        console.print(Text("passed"), soft_wrap=True)
    else:
        console.print(Text("not passed", style="red"), soft_wrap=True)


def _cells(check: EngineCheck) -> tuple[str, ...]:
    steps = "-" if check.steps is None else f"{check.steps:.4g}"
    kl = "-" if check.mean_kl is None else f"{check.mean_kl:.2g}"
    return check.name, check.file, percent(check.top1), percent(check.agreement), kl, steps


def _remarks(found: Verification) -> Iterator[tuple[str, str]]:
    for finding in found.findings:
        yield f"file: {finding}", "red"
    for check in found.checks:
        for failure in (check.error, *check.failures):
            if failure:
                yield f"{check.name}: {failure}", "red"
        if check.explanation is not None:
            yield f"{check.name}: {_where(check)}", ""
            yield f"  {check.explanation.cause}", "yellow" if check.explanation.saturates else ""


def _where(check: EngineCheck) -> str:
    assert check.explanation is not None
    departure = check.explanation.departure
    if departure.first is None:
        return "equal on the way"
    how = "first differs" if departure.whole else "first seen to differ"
    behind = f", behind {', '.join(departure.unseen)}, inside its kernel" if departure.unseen else ""
    text = f"{how} at {_difference(departure.first)}{behind}"
    if departure.leap is not None and departure.leap != departure.first:
        text += f"; more than one step at {_difference(departure.leap)}"
    if departure.far is not None and departure.far not in (departure.first, departure.leap):
        text += f"; more than {FAR} steps at {_difference(departure.far)}"
    return text


def _difference(found: Difference) -> str:
    steps = "1 step" if found.steps == 1 else f"{found.steps} steps"
    return f"{found.tensor} ({found.operator}): up to {steps}, {100 * found.share:.2g}% of its elements"
