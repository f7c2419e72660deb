"""Comparison, logic, choice; numbers in a row, grids, triangles: mostly masks, which become constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def not_equal(c: OpContext) -> ir.Value:
    """Where two tensors differ."""
    return c.node("Not", c.node("Equal", c.input("X"), c.input("Y")))


def where(c: OpContext) -> ir.Value:
    """Elements of one tensor where the condition holds, else of the other."""
    return c.node("Where", c.input("Condition"), c.input("X"), c.input("Y"))


def floor_divide(c: OpContext) -> ir.Value:
    """Quotient rounded down."""
    x, y = c.input("X"), c.input("Y")
    if x.dtype is not None and x.dtype.is_integer():
        rest = c.node("Mod", x, y)  # has the sign of the divisor, so that the division has no remainder
        return c.node("Div", c.node("Sub", x, rest), y)
    return c.node("Floor", c.node("Div", x, y))


def remainder(c: OpContext) -> ir.Value:
    """x - floor(x / y) * y."""
    x, y = c.input("X"), c.input("Y")
    if x.dtype is not None and x.dtype.is_integer():
        return c.node("Mod", x, y)
    return c.node("Sub", x, c.node("Mul", c.node("Floor", c.node("Div", x, y)), y))


def numbers_in_a_row(c: OpContext) -> ir.Value | None:
    """start, start + step, ... below end. Of known numbers it costs no node."""
    dtype = c.dtype("dtype")
    arrays = []
    for tensor, attribute in (("Start", "start"), ("End", "end"), ("Step", "step")):
        arrays.append(c.constant(tensor) if c.has(tensor) else np.asarray(c.numbers(attribute)))
    known = [array.ravel()[0] for array in arrays if array is not None]
    if len(known) == 3:
        c.set_constant("Out", np.arange(*known).astype(known[1].dtype if dtype is None else dtype))
        return None
    kind = np.dtype(np.int64) if dtype is None else dtype
    bounds = []
    for tensor, array in zip(("Start", "End", "Step"), arrays, strict=True):
        bound = c.tensor(array.ravel()[:1]) if array is not None else c.input(tensor)
        bounds.append(c.reshape(c.cast(bound, kind), []))
    return c.node("Range", *bounds)


def linspace(c: OpContext) -> None:
    """A number of values from start to stop, both included. No node."""
    start, stop, count = (c.required_constant(name).ravel()[0] for name in ("Start", "Stop", "Num"))
    dtype = c.dtype("dtype") or np.dtype(np.float32)
    c.set_constant("Out", np.linspace(start, stop, int(count)).astype(dtype))


def meshgrid(c: OpContext) -> Sequence[ir.Value]:
    """Vectors as coordinates of a grid: each varies along its own axis."""
    vectors = c.inputs("X")
    sizes = [size for vector in vectors for size in c.static_dims(vector, 0)]
    target = c.int64(sizes)
    shapes = [[-1 if i == axis else 1 for i in range(len(sizes))] for axis in range(len(sizes))]
    return [c.node("Expand", c.reshape(vector, shape), target) for vector, shape in zip(vectors, shapes, strict=True)]


def triangle(upper: bool | None) -> Callable[[OpContext], ir.Value]:
    """Rule that keeps the upper or the lower triangle; None: the attribute `lower` says which."""

    def rule(c: OpContext) -> ir.Value:
        keep_upper = not c.flag("lower", True) if upper is None else upper
        diagonal = c.tensor(np.asarray(c.integer("diagonal", 0), dtype=np.int64))
        return c.node("Trilu", c.input("X"), diagonal, upper=int(keep_upper))

    return rule


def cumulated(c: OpContext) -> ir.Value:
    """Sum of all elements up to each one along an axis, or in the flattened tensor."""
    x = c.input("X")
    if c.flag("flatten"):
        x = c.reshape(x, [-1])
    axis = c.tensor(np.asarray((c.known_integers("axis", "AxisTensor", "") or [-1])[0], dtype=np.int64))
    options = {"exclusive": int(c.flag("exclusive")), "reverse": int(c.flag("reverse"))}
    return c.node("CumSum", x, axis, **options)
