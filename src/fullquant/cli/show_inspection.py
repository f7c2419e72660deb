"""The text form of an inspection."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullquant.auto_compression.inspection import Inspection, TensorShape
from fullquant.report.record import TensorEntry

_FORMATS = {"program_desc": "Paddle program (.pdmodel)", "pir": "Paddle 3 program (.json)", "onnx": "ONNX"}


def show_inspection(console: Console, found: Inspection, *, tensors: bool = False) -> None:
    """What the model is, its operators, and the decisions in short or, with `tensors`, one by one."""
    macs = "unknown: height and width are free, give --img-size"
    facts = [
        ("model", found.model), ("parameters in", found.params or "the model file"),
        ("format", _FORMATS.get(found.source_format, found.source_format)),
        ("input", _shapes(found.inputs)), ("output", _shapes(found.outputs)),
        ("parameters", f"{found.parameters:,}"),
        ("multiply-adds", macs if found.multiply_adds is None else f"{found.multiply_adds:,} an image"),
        ("quantized", "yes: the file holds quantizers already" if found.quantized else "no"),
    ]  # fmt: skip
    for name, value in facts:
        console.print(Text(f"{name:<14} {value}"), soft_wrap=True)
    console.print()
    console.print(_operators(found))
    console.print()
    _placement(console, found)
    if tensors and found.tensors:
        console.print()
        console.print(_tensors(found.tensors))


def _shapes(values: Iterable[TensorShape]) -> str:
    return ", ".join(f"{value.name} [{', '.join(map(str, value.shape))}]" for value in values)


def _operators(found: Inspection) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("operator")
    table.add_column("nodes", justify="right")
    if found.placement is not None:
        table.add_column(f"int8 on {found.target}", justify="right")
        table.add_column("kernel")
    for entry in found.operators:
        int8 = [str(entry.int8), entry.kernel] if found.placement is not None else []
        table.add_row(entry.operator, str(entry.nodes), *int8)
    return table


def _placement(console: Console, found: Inspection) -> None:
    if found.quantized:
        console.print("nothing to place: quantize the float model it was made from")
    elif found.placement is None:
        console.print(Text(f"cannot be placed: {found.refusal}", style="red"), soft_wrap=True)
    else:
        placed = found.placement
        int8 = ", ".join(f"{count} {kind}s" for kind, count in placed.quantized.items()) or "nothing"
        whole = "; every activation is: fully integer" if placed.full_integer else ""
        console.print(Text(f"integer: {int8.replace('biass', 'biases')}{whole}"), soft_wrap=True)
        kernels = ", ".join(f"{entry.nodes} {entry.operator}" for entry in found.operators if entry.kernel == "float")
        if kernels:
            line = f"{found.target} computes these in float between int8 tensors (docs/targets.md): {kernels}"
            console.print(Text(line), soft_wrap=True)
        for reason, count in placed.float_reasons.items():
            console.print(Text(f"float: {count} x {reason}"), soft_wrap=True)


def _tensors(entries: Iterable[TensorEntry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("tensor", "kind", "grid", "scale of", "reason"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        cells = (entry.tensor, entry.kind, entry.grid, entry.shares or "", entry.reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table
