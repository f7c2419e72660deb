"""A value as a polynomial of other values, whatever the order in which its sums and products are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from fullquant.graph.edit import rank, scalar_constant

#: Exponents of the atoms -> coefficient.
Polynomial: TypeAlias = dict[tuple[int, ...], float]

_DEPTH = 12
_MAX_DEGREE = 6


def polynomial(value: ir.Value | None, atoms: Sequence[ir.Value], depth: int = _DEPTH) -> Polynomial | None:
    """The polynomial of `atoms` that a value is, through Add, Sub, Mul, Div, Neg and Pow; None if it is none.

    Constants have one element and no more axes than the first atom, so that nothing is broadcast to a larger shape.
    """
    none = (0,) * len(atoms)
    for index, atom in enumerate(atoms):
        if value is atom:
            return {tuple(int(position == index) for position in range(len(atoms))): 1.0}
    number = scalar_constant(value)
    if number is not None:
        return {none: number} if (rank(value) or 0) <= (rank(atoms[0]) or 0) else None
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth == 0:
        return None
    if node.op_type == "Neg":
        inner = polynomial(node.inputs[0], atoms, depth - 1)
        return None if inner is None else {key: -factor for key, factor in inner.items()}
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow") or len(node.inputs) != 2:
        return None
    left, right = (polynomial(operand, atoms, depth - 1) for operand in node.inputs)
    if left is None or right is None:
        return None
    if node.op_type == "Mul":
        return _product(left, right)
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return {key: left.get(key, 0.0) + sign * right.get(key, 0.0) for key in {**left, **right}}
    if set(right) != {none} or right[none] == 0:
        return None
    if node.op_type == "Div":
        return {key: factor / right[none] for key, factor in left.items()}
    return _power(left, right[none])


def equals(found: Polynomial | None, wanted: Mapping[tuple[int, ...], float], tolerance: float) -> bool:
    """Whether all coefficients agree, relative to the wanted ones; what is not wanted must be 0."""
    if found is None or not set(wanted) <= set(found):
        return False
    return all(abs(factor - wanted.get(key, 0.0)) <= tolerance * abs(wanted.get(key, 0.0))
               for key, factor in found.items())  # fmt: skip


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    result: Polynomial = {}
    for a, x in left.items():
        for b, y in right.items():
            key = tuple(i + j for i, j in zip(a, b, strict=True))
            if sum(key) > _MAX_DEGREE:
                return None
            result[key] = result.get(key, 0.0) + x * y
    return result


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in (1.0, 2.0, 3.0):
        return None
    result: Polynomial | None = base
    for _ in range(int(exponent) - 1):
        result = None if result is None else _product(result, base)
    return result
