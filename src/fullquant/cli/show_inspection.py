"""The text form of an inspection."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullquant.auto_compression.inspected_nodes import FallbackEntry, NodeEntry
from fullquant.auto_compression.inspection import Inspection, TensorShape
from fullquant.report.record import TensorEntry

_FORMATS = {"program_desc": "Paddle program (.pdmodel)", "pir": "Paddle 3 program (.json)", "onnx": "ONNX"}
_LAYOUTS = {
    "NCHW": "NCHW [N, channels, height, width]",
    "NHWC": "NHWC [N, height, width, channels] in the file; the graph and the files written from it take NCHW",
    "NHWC kept": "NHWC [N, height, width, channels]; so do the files written from it, since the model does not "
                 "transpose the image before all else",
}  # fmt: skip
_PLACED = {"int8": "int8", "float_kernel": "float kernel", "float": "float", "none": "-"}
_NAMES = 4  # of the operators that fall back; --operators has all


def show_inspection(console: Console, found: Inspection, *, operators: bool = False, tensors: bool = False) -> None:
    """What the model is, its operators, what stays float and why, and the verdict.

    operators: a row for each operator. tensors: a row for each decision.
    """
    for name, value in _facts(found):
        _line(console, f"{name:<14} {value}")
    console.print()
    console.print(_operators(found))
    if operators:
        console.print()
        console.print(_nodes(found.nodes))
    console.print()
    _placement(console, found)
    if tensors and found.tensors:
        console.print()
        console.print(_tensors(found.tensors))
        console.print()
    _line(console, f"verdict: {found.verdict}", "bold")


def _facts(found: Inspection) -> list[tuple[str, str]]:
    sizes = f"{found.weight_bytes / 1e6:.2f} MB in float32"
    if found.weight_bytes_int8 is not None:
        sizes += f", about {found.weight_bytes_int8 / 1e6:.2f} MB in int8"
    return [
        ("model", f"{found.model}  ({found.file_bytes / 1e6:.2f} MB with its parameters)"),
        ("parameters in", found.params or "the model file"),
        ("format", _FORMATS.get(found.source_format, found.source_format)),
        ("input", _shapes(found.inputs)), *_layout(found), ("output", _shapes(found.outputs)),
        ("parameters", f"{found.parameters:,}; {sizes}"),
        ("multiply-adds", _multiply_adds(found)),
        ("quantized", f"yes: {found.quantized_as}; the file holds quantizers already" if found.quantized else "no"),
    ]  # fmt: skip


def _layout(found: Inspection) -> list[tuple[str, str]]:
    """None for an input that is no image."""
    return [("input layout", _LAYOUTS[found.input_layout])] if found.input_layout else []


def _multiply_adds(found: Inspection) -> str:
    if found.multiply_adds is None or found.multiply_adds_by_kind is None:
        return "unknown: height and width are free, give --img-size"
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in found.multiply_adds_by_kind.items())
    share = "" if found.int8_share is None else f"; {100 * found.int8_share:.1f}% in int8 on {found.target}"
    return f"{found.multiply_adds:,} an image ({kinds or 'none'}){share}"


def _shapes(values: Iterable[TensorShape]) -> str:
    return ", ".join(f"{value.name} [{', '.join(map(str, value.shape))}]" for value in values)


def _table(*titles: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in numbers else "left", overflow="fold")
    return table


def _operators(found: Inspection) -> Table:
    int8 = f"int8 on {found.target}"
    numbers = ("nodes", int8, "parameters", "multiply-adds")
    if found.placement is None:
        table = _table("operator", "nodes", "parameters", "multiply-adds", numbers=numbers)
    else:
        table = _table("operator", "nodes", int8, "kernel", "parameters", "multiply-adds", numbers=numbers)
    for entry in found.operators:
        placed = [] if found.placement is None else [str(entry.int8), entry.kernel]
        sizes = [_number(entry.parameters), "?" if entry.multiply_adds is None else _number(entry.multiply_adds)]
        table.add_row(entry.operator, str(entry.nodes), *placed, *sizes)
    return table


def _number(number: int) -> str:
    return f"{number:,}" if number else ""


def _placement(console: Console, found: Inspection) -> None:
    if found.refusal and not found.quantized:
        _line(console, f"cannot be placed: {found.refusal}", "red")
    if found.placement is None:
        return
    placed = found.placement
    int8 = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in placed.quantized.items()) or "nothing"
    whole = "; every activation is: fully integer" if placed.full_integer else ""
    _line(console, f"int8 tensors: {int8}{whole}")
    for reason, count in placed.float_reasons.items():
        _line(console, f"float tensors: {count} x {reason}")
    if found.fallback:
        _line(console, "computed in float:")
    for group in found.fallback:
        _line(console, f"  {_fallback(group)}")


def _fallback(group: FallbackEntry) -> str:
    names = ", ".join(group.nodes[:_NAMES])
    more = f" and {len(group.nodes) - _NAMES} more (--operators)" if len(group.nodes) > _NAMES else ""
    return f"{len(group.nodes)} {group.operator}: {group.reason}: {names}{more}"


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}es" if kind.endswith("s") else f"{kind}s"


def _nodes(entries: Iterable[NodeEntry]) -> Table:
    titles = ("name", "operator", "in the file", "output", "shape", "parameters", "multiply-adds", "computed in", "why")
    table = _table(*titles, numbers=("parameters", "multiply-adds"))
    for entry in entries:
        products = "?" if entry.multiply_adds is None else _number(entry.multiply_adds)
        cells = (
            entry.name, entry.operator, entry.source, entry.output, ", ".join(map(str, entry.shape)),
            _number(entry.parameters), products, _PLACED[entry.placed], entry.reason,
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _tensors(entries: Iterable[TensorEntry]) -> Table:
    table = _table("tensor", "kind", "grid", "scale of", "reason")
    for entry in entries:
        cells = (entry.tensor, entry.kind, entry.grid, entry.shares or "", entry.reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
