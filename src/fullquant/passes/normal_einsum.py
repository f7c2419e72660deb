"""Einsum of one or two tensors becomes Transpose, Reshape, MatMul and ReduceSum."""

from __future__ import annotations

import logging
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_string,
    dims,
    graph_of,
    insert_before,
    node_label,
    rank,
    replace_node,
)

_log = logging.getLogger(__name__)


def normal_einsum(model: ir.Model) -> int:
    """Rewrites the einsums that are matrix products, permutations and sums; returns how many.

    Left as they are: three tensors and more, an index twice in one tensor (a diagonal), sizes that do not follow.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain != "":
            continue
        parsed = _parsed(node)
        if parsed is None:
            _log.debug("%s has an equation of another kind; kept", node_label(node))
        elif len(node.inputs) == 1:
            count += _single(node, *parsed)
        else:
            count += _product(node, *parsed)
    return count


def _parsed(node: ir.Node) -> tuple[list[str], str] | None:
    """(indices of each operand, of the result), the ellipsis written out in letters that the equation lacks."""
    equation = attribute_string(node, "equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms, ranks = left.split(","), [rank(value) for value in node.inputs]
    if len(terms) != len(ranks) or len(terms) > 2:
        return None
    free = [letter for letter in string.ascii_letters if letter not in equation]
    written = []
    for term, axes in zip(terms, ranks, strict=True):
        hidden = 0 if axes is None else axes - len(term.replace("...", ""))
        if axes is None or hidden < 0 or (hidden and "..." not in term) or hidden > len(free):
            return None
        # Aligned from the right, as NumPy broadcasts.
        written.append(term.replace("...", "".join(free[:hidden][::-1])))
    longest = max((axes or 0) - len(term.replace("...", "")) for term, axes in zip(terms, ranks, strict=True))
    ellipsis = "".join(free[:longest][::-1])
    if not arrow:
        once = sorted(letter for letter in set("".join(written)) - set(ellipsis) if "".join(written).count(letter) == 1)
        result = ellipsis + "".join(once)
    else:
        result = right.replace("...", ellipsis)
    simple = all(len(set(term)) == len(term) for term in (*written, result))
    return (written, result) if simple and set(result) <= set("".join(written)) else None


def _single(node: ir.Node, terms: Sequence[str], result: str) -> bool:
    term, x = terms[0], node.inputs[0]
    assert x is not None
    summed = [axis for axis, letter in enumerate(term) if letter not in result]
    kept = [letter for letter in term if letter in result]
    if summed and [*result] == kept:
        axes = add_initializer(graph_of(node), f"{node.name}.axes", np.asarray(summed, np.int64))
        replace_node(node, "ReduceSum", [x, axes], {"keepdims": 0})
        return True
    if summed:
        axes = add_initializer(graph_of(node), f"{node.name}.axes", np.asarray(summed, np.int64))
        x = insert_before(node, "ReduceSum", [x, axes], {"keepdims": 0})
    replace_node(node, "Transpose", [x], {"perm": [kept.index(letter) for letter in result]})
    return True


@dataclass(frozen=True)
class _Axes:
    """The indices of a product: in both tensors and the result, in one and the result, in both but not the result."""

    batch: str
    rows: str
    columns: str
    inner: str


def _product(node: ir.Node, terms: Sequence[str], result: str) -> bool:
    first, second = terms
    axes = _Axes(
        "".join(letter for letter in result if letter in first and letter in second),
        "".join(letter for letter in result if letter in first and letter not in second),
        "".join(letter for letter in result if letter in second and letter not in first),
        "".join(letter for letter in first if letter in second and letter not in result),
    )
    sizes = _sizes(node, terms)
    if len(axes.batch + axes.rows + axes.inner) != len(first) or sizes is None:
        return False  # an index of one tensor alone is summed over, or a size of 1 is broadcast
    if len(axes.batch + axes.columns + axes.inner) != len(second):
        return False
    groups = (axes.rows, axes.columns, axes.inner)
    # A matrix of constants takes any number of rows; otherwise each kind of index becomes one axis.
    plain = len(axes.inner) == 1 and len(axes.columns) == 1 and (not axes.batch or len(axes.rows) == 1)
    if not plain and (any(sum(sizes[letter] is None for letter in g) > 1 for g in groups) or _is_open(axes, sizes)):
        return False
    a = _ordered(node, 0, first, axes.batch + axes.rows + axes.inner)
    b = _ordered(node, 1, second, axes.batch + axes.inner + axes.columns)
    if not plain:
        a = _reshaped(node, a, axes.batch, [axes.rows, axes.inner], sizes)
        b = _reshaped(node, b, axes.batch, [axes.inner, axes.columns], sizes)
    made = axes.batch + axes.rows + axes.columns
    order = [made.index(letter) for letter in result]
    if plain and order == sorted(order):
        replace_node(node, "MatMul", [a, b])
        return True
    y = insert_before(node, "MatMul", [a, b])
    if plain:
        replace_node(node, "Transpose", [y], {"perm": order})
        return True
    if order != sorted(order):
        y = _reshaped(node, y, axes.batch, [*axes.rows, *axes.columns], sizes)
        replace_node(node, "Transpose", [y], {"perm": order})
        return True
    target = _target(axes.batch, [*axes.rows, *axes.columns], sizes)
    replace_node(node, "Reshape", [y, add_initializer(graph_of(node), f"{node.name}.shape", target)])
    return True


def _sizes(node: ir.Node, terms: Sequence[str]) -> dict[str, int | None] | None:
    """{index: size, None where it is open}; None where two operands disagree, which is a broadcast."""
    sizes: dict[str, int | str | None] = {}
    for value, term in zip(node.inputs, terms, strict=True):
        shape = dims(value)
        if shape is None:
            return None
        for letter, size in zip(term, shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size and isinstance(known, int) and isinstance(size, int):
                return None
            if isinstance(size, int):
                sizes[letter] = size
            elif isinstance(known, int) and known == 1:
                return None
    return {letter: size if isinstance(size, int) else None for letter, size in sizes.items()}


def _is_open(axes: _Axes, sizes: dict[str, int | None]) -> bool:
    """Whether more than one of the axes behind the batch is open, which no Reshape can say."""
    behind = [sizes[letter] for letter in axes.rows + axes.columns]
    return behind.count(None) > 1 or any(sizes[letter] is None for letter in axes.inner)


def _ordered(node: ir.Node, index: int, term: str, wanted: str) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    order = [term.index(letter) for letter in wanted]
    if order == sorted(order):
        return value
    return insert_before(node, "Transpose", [value], {"perm": order})


def _target(batch: str, groups: Sequence[str], sizes: dict[str, int | None]) -> list[int]:
    """0 for each axis of the batch (as it is), the product of each group, -1 for an open one."""
    known = [[sizes[letter] for letter in group] for group in groups]
    return [0] * len(batch) + [-1 if None in group else math.prod(size or 0 for size in group) for group in known]


def _reshaped(
    node: ir.Node, value: ir.Value, batch: str, groups: Sequence[str], sizes: dict[str, int | None]
) -> ir.Value:
    target = np.asarray(_target(batch, groups, sizes), np.int64)
    return insert_before(node, "Reshape", [value, add_initializer(graph_of(node), f"{node.name}.shape", target)])
