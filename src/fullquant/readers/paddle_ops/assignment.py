"""Assignment to a part of a tensor, of constants only: how attention masks are made. No node."""

from __future__ import annotations

import numpy as np

from fullquant.readers.paddle_ops.context import OpContext


def set_value(c: OpContext) -> None:
    """x[starts:ends:steps] = value along `axes`, of a constant x. Sizes beyond the end are cut, as in NumPy.

    Attributes: axes, starts, ends, steps, decrease_axes (axes that the value does not have), shape and values of the
    value; none_axes (a new axis) is not read.
    """
    if c.integers("none_axes"):
        raise c.unsupported("an assignment with a new axis is not read")
    result = np.array(c.required_constant("Input"))
    axes = c.integers("axes")
    bounds = [
        c.known_integers(name, f"{name.capitalize()}Tensor", f"{name.capitalize()}TensorList")
        for name in ("starts", "ends", "steps")
    ]
    single = c.integers("decrease_axes")
    index: list[slice | int] = [slice(None)] * result.ndim
    for axis, start, end, step in zip(axes, *bounds, strict=True):
        if step < 1:
            raise c.unsupported(f"an assignment with step {step} is not read")
        index[c.axis(axis, result.ndim)] = start if axis in single else slice(start, end, step)
    result[tuple(index)] = _value(c)
    c.set_constant("Out", result)


def _value(c: OpContext) -> np.ndarray:
    if c.has("ValueTensor"):
        return np.asarray(c.required_constant("ValueTensor"))
    names = ("values", "fp32_values", "fp64_values", "int32_values", "int64_values", "bool_values")
    numbers = next((found for name in names if (found := c.numbers(name))), [])
    shape = c.integers("shape")
    return np.asarray(numbers).reshape(shape) if len(numbers) != 1 else np.asarray(numbers[0])
