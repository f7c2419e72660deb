"""Integer vectors that tell of shapes, element by element, as far as they follow from constants and known sizes."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from fullquant.graph.edit import attribute_int, constant_value, dims, input_at, ints_constant, producer_of

#: One size: known, or named after a symbolic dimension ("N") or a multiple of one ("N*64"), or unknown.
Size: TypeAlias = int | str | None

_MULTIPLE = re.compile(r"(?P<name>.+)\*(?P<times>\d+)")


def scaled(size: str, factor: int, divisor: int = 1) -> str | None:
    """size * factor / divisor as a name: "N" * 64 is "N*64"; None where the quotient is no multiple of the symbol."""
    found = _MULTIPLE.fullmatch(size)
    name, times = (size, 1) if found is None else (found["name"], int(found["times"]))
    if factor <= 0 or divisor <= 0 or times * factor % divisor:
        return None
    times = times * factor // divisor
    return name if times == 1 else f"{name}*{times}"


def reshaped_size(data: Sequence[Size], target: Sequence[int]) -> str | None:
    """The size that takes the place of -1 in a target of Reshape, where one size of the data is a symbol.

    The symbol stays where the other sizes leave a multiple of it; None where they don't, or several are unknown.
    """
    sizes = [data[axis] if size == 0 and axis < len(data) else size for axis, size in enumerate(target) if size != -1]
    symbols = [size for size in data if isinstance(size, str)]
    if target.count(-1) != 1 or len(symbols) != 1 or None in data or not all(isinstance(size, int) for size in sizes):
        return None
    known = [size for size in data if isinstance(size, int)]
    return scaled(symbols[0], math.prod(known), math.prod(size for size in sizes if isinstance(size, int)))


def shape_elements(value: ir.Value | None) -> list[Size] | None:
    """The elements of an integer vector (a scalar counts as one element) that is computed from constants and shapes.

    Known elements are integers, sizes of symbolic dimensions their names, others None; None altogether where not even
    the number of elements follows.
    """
    constant = constant_value(value)
    if constant is not None:
        return [int(element) for element in constant.reshape(-1)] if constant.dtype.kind in "iu" else None
    node = producer_of(value)
    rule = None if node is None or node.domain != "" else _SHAPE_RULES.get(node.op_type)
    return None if rule is None or node is None else rule(node)


def _shape(node: ir.Node) -> list[Size] | None:
    sizes = dims(node.inputs[0])
    if sizes is None:
        return None
    return list(sizes[attribute_int(node, "start", 0) : attribute_int(node, "end", len(sizes))])


def _first(node: ir.Node) -> list[Size] | None:
    return shape_elements(node.inputs[0])


def _concatenated(node: ir.Node) -> list[Size] | None:
    parts = [shape_elements(value) for value in node.inputs]
    found = [part for part in parts if part is not None]
    return [size for part in found for size in part] if len(found) == len(parts) else None


def _sliced(node: ir.Node) -> list[Size] | None:
    elements = shape_elements(node.inputs[0])
    bounds = [ints_constant(input_at(node, index)) for index in (1, 2)]
    steps = ints_constant(input_at(node, 4)) if input_at(node, 4) is not None else [1]
    starts, ends = bounds
    if elements is None or starts is None or ends is None or steps is None or len(starts) != 1 or steps[0] <= 0:
        return None
    return elements[starts[0] : ends[0] : steps[0]]


def _gathered(node: ir.Node) -> list[Size] | None:
    elements, indices = shape_elements(node.inputs[0]), ints_constant(input_at(node, 1))
    if elements is None or indices is None or any(not -len(elements) <= index < len(elements) for index in indices):
        return None
    return [elements[index] for index in indices]


def _squeezed_axes_agree(node: ir.Node) -> list[Size] | None:
    """Squeeze and Unsqueeze between a scalar and a vector of one element keep the element."""
    elements = shape_elements(node.inputs[0])
    return elements if elements is not None and len(elements) == 1 else None


def _computed(operation: Callable[[int, int], int]) -> Callable[[ir.Node], list[Size] | None]:
    """Arithmetic of two vectors, or of a vector and one number. A symbol stays one if it meets the neutral number."""
    neutral = {operator.add: 0, operator.sub: 0, operator.mul: 1, operator.floordiv: 1, max: 1}.get(operation)

    def rule(node: ir.Node) -> list[Size] | None:
        parts = [shape_elements(value) for value in node.inputs]
        if len(parts) != 2 or parts[0] is None or parts[1] is None or 0 in (len(parts[0]), len(parts[1])):
            return None
        length = max(len(parts[0]), len(parts[1]))
        first, second = (part * length if len(part) == 1 else part for part in (parts[0], parts[1]))
        return [one(a, b) for a, b in zip(first, second, strict=True)] if len(first) == len(second) else None

    def one(a: Size, b: Size) -> Size:
        if isinstance(a, int) and isinstance(b, int):
            divides = operation in (operator.floordiv, operator.mod)
            return None if divides and (a < 0 or b <= 0) else operation(a, b)
        if neutral is not None and b == neutral:
            return a
        if isinstance(a, str) and isinstance(b, int) and operation in (operator.mul, operator.floordiv):
            return scaled(a, b) if operation is operator.mul else scaled(a, 1, b)
        if isinstance(a, int) and isinstance(b, str) and operation is operator.mul:
            return scaled(b, a)
        if isinstance(a, str) and isinstance(b, int) and operation is operator.mod:
            return 0 if scaled(a, 1, b) is not None else None
        return b if neutral is not None and a == neutral and operation in (operator.add, operator.mul, max) else None

    return rule


_SHAPE_RULES: dict[str, Callable[[ir.Node], list[Size] | None]] = {
    "Shape": _shape,
    "Cast": _first,
    "Identity": _first,
    "Concat": _concatenated,
    "Slice": _sliced,
    "Gather": _gathered,
    "Squeeze": _squeezed_axes_agree,
    "Unsqueeze": _squeezed_axes_agree,
    "Reshape": _first,
    "Add": _computed(operator.add),
    "Sub": _computed(operator.sub),
    "Mul": _computed(operator.mul),
    "Div": _computed(operator.floordiv),
    "Mod": _computed(operator.mod),
    "Max": _computed(max),
}
