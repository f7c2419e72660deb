"""Assignment to a part of a tensor: of a constant (attention masks) no node, of others (TNT) Slice and Concat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def set_value(c: OpContext) -> ir.Value | None:
    """x[starts:ends:steps] = value along `axes`. Sizes beyond the end are cut, as in NumPy.

    Attributes: axes, starts, ends, steps, decrease_axes (axes that the value does not have), shape and values of the
    value; none_axes (a new axis) is not read. Where x or the value is computed, one axis is cut, with step 1, and the
    value has the size of the part: the result is Concat(x before the part, value, x behind it).
    """
    if c.integers("none_axes"):
        raise c.unsupported("an assignment with a new axis is not read")
    bounds = [
        c.known_integers(name, f"{name.capitalize()}Tensor", f"{name.capitalize()}TensorList")
        for name in ("starts", "ends", "steps")
    ]
    parts = list(zip(c.integers("axes"), *bounds, strict=True))
    source = c.constant("Input")
    if source is None or (c.has("ValueTensor") and c.constant("ValueTensor") is None):
        return _of_computed(c, parts)
    result = np.array(source)
    single = c.integers("decrease_axes")
    index: list[slice | int] = [slice(None)] * result.ndim
    for axis, start, end, step in parts:
        if step < 1:
            raise c.unsupported(f"an assignment with step {step} is not read")
        index[c.axis(axis, result.ndim)] = start if axis in single else slice(start, end, step)
    result[tuple(index)] = _value(c)
    c.set_constant("Out", result)
    return None


def _of_computed(c: OpContext, parts: list[tuple[int, int, int, int]]) -> ir.Value:
    x = c.input("Input")
    sizes = c.dims(x)
    cut = []
    for number, start, end, step in parts:
        axis = c.axis(number, len(sizes))
        if step != 1:
            raise c.unsupported(f"an assignment with step {step} to a computed tensor is not read")
        if sizes[axis] is None and start == 0 and end >= 2**31 - 1:
            continue  # the whole axis, the batch for one
        (size,) = c.static_dims(x, axis)
        first, last, _ = slice(start, end).indices(size)
        if (first, last) != (0, size):
            cut.append((axis, first, last, size))
    if len(cut) != 1 or not c.has("ValueTensor"):
        raise c.unsupported("an assignment to a computed tensor is read for one axis, of a tensor")
    ((axis, first, last, size),) = cut
    value = c.input("ValueTensor")
    dropped = sorted({c.axis(number, len(sizes)) for number in c.integers("decrease_axes")})
    if dropped:
        value = c.node("Unsqueeze", value, c.int64(dropped))
    _check_size(c, value, [*sizes[:axis], last - first, *sizes[axis + 1 :]])
    pieces = [value]
    if first > 0:
        pieces.insert(0, c.node("Slice", x, c.int64([0]), c.int64([first]), c.int64([axis])))
    if last < size:
        pieces.append(c.node("Slice", x, c.int64([last]), c.int64([size]), c.int64([axis])))
    return c.node("Concat", *pieces, axis=axis)


def _check_size(c: OpContext, value: ir.Value, wanted: list[int | None]) -> None:
    """A value that would have to be repeated is refused. Sizes that are open on both sides are the batch."""
    if c.dims(value) != wanted:
        raise c.unsupported(
            f"an assignment to a computed tensor is read where the value has the size of the part, {wanted}; "
            f"it is {c.dims(value)}"
        )


def _value(c: OpContext) -> np.ndarray:
    if c.has("ValueTensor"):
        return np.asarray(c.required_constant("ValueTensor"))
    names = ("values", "fp32_values", "fp64_values", "int32_values", "int64_values", "bool_values")
    numbers = next((found for name in names if (found := c.numbers(name))), [])
    shape = c.integers("shape")
    return np.asarray(numbers).reshape(shape) if len(numbers) != 1 else np.asarray(numbers[0])
