"""Operators that move data or talk about shapes, and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.graph.shape_values import Size, reshaped_size, shape_elements
from fullquant.readers.paddle_ops.context import OpContext

# No classifier has larger filled tensors; a damaged file may ask for any size.
_LARGEST_CONSTANT = 1 << 26


def reshape(c: OpContext) -> ir.Value:
    """Reshape; 0 copies a size and -1 takes what is left, in Paddle and in ONNX alike.

    Both are replaced by numbers where the input's shape is known: Paddle's two formats differ in what they leave open.
    """
    x = c.input("X")
    shape = c.integers_or_value("shape", "Shape", "ShapeTensor")
    if isinstance(shape, ir.Value):
        target = _known_target(x, shape)
        return c.node("Reshape", x, shape) if target is None else _reshaped(c, x, target)
    dims = [dim for dim in c.dims(x) if dim is not None] if x.shape is not None else []
    if x.shape is not None and len(dims) == len(x.shape):
        shape = [dims[axis] if size == 0 else size for axis, size in enumerate(shape)]
        known = math.prod(size for size in shape if size != -1)
        shape = [math.prod(dims) // known if size == -1 and known else size for size in shape]
    return _reshaped(c, x, shape)


def _reshaped(c: OpContext, x: ir.Value, target: Sequence[int]) -> ir.Value:
    """Reshape to numbers that keeps track of the batch: its multiples come from cutting an image into windows."""
    symbol = reshaped_size(_sizes(x), target)
    if symbol is not None and target[0] == -1 and _sizes(x)[:1] == [symbol]:
        return c.reshape(x, [0, *target[1:]])
    result = c.reshape(x, target)
    if symbol is not None:
        c.name_size(result, list(target).index(-1), symbol)
    return result


def _sizes(x: ir.Value) -> list[Size]:
    return [] if x.shape is None else [dim if isinstance(dim, int) else dim.value for dim in x.shape]


def _known_target(x: ir.Value, shape: ir.Value) -> list[int] | None:
    """A target computed from sizes: 0 for the size that the data has there, -1 for one that is not known."""
    sizes = shape_elements(shape)
    if sizes is None:
        return None
    data = _sizes(x)
    copied = [isinstance(size, str) and data[axis : axis + 1] == [size] for axis, size in enumerate(sizes)]
    target = [size if isinstance(size, int) else 0 if same else -1 for size, same in zip(sizes, copied, strict=True)]
    return target if target.count(-1) <= 1 else None


def flatten_range(c: OpContext) -> ir.Value:
    """The axes from start_axis to stop_axis become one."""
    x = c.input("X")
    rank = c.rank(x)
    if rank == 0:
        return c.reshape(x, [1])
    start = c.axis(c.integer("start_axis", 1), rank)
    stop = c.axis(c.integer("stop_axis", 1), rank)
    if start == 1 and stop == rank - 1 and rank > 1:
        return c.node("Flatten", x, axis=1)
    trailing = c.dims(x)[stop + 1 :]
    if None not in trailing:
        return _reshaped(c, x, [0] * start + [-1] + [dim for dim in trailing if dim is not None])
    leading = c.int64([0] * start + [-1])
    return c.node("Reshape", x, c.node("Concat", leading, c.node("Shape", x, start=stop + 1), axis=0))


def flatten(c: OpContext) -> ir.Value:
    """A matrix: the axes before `axis` make the rows."""
    return c.node("Flatten", c.input("X"), axis=c.integer("axis", 1))


def transpose(c: OpContext) -> ir.Value:
    """Axes in another order."""
    x = c.input("X")
    rank = c.rank(x)
    return c.node("Transpose", x, perm=[c.axis(axis, rank) for axis in c.integers("axis")])


def squeeze(c: OpContext) -> ir.Value:
    """Drops axes of size 1; axes that have another size stay, as in Paddle. No axes: all of size 1."""
    x = c.input("X")
    dims = c.dims(x)
    asked = [c.axis(axis, len(dims)) for axis in c.known_integers("axes", "AxesTensor", "AxesTensorList")]
    if not asked:
        c.static_dims(x, *range(1, len(dims)))
        asked = [axis for axis, dim in enumerate(dims) if dim == 1]
    axes = sorted({axis for axis in asked if dims[axis] in (1, None)})
    return c.node("Squeeze", x, c.int64(axes)) if axes else x


def unsqueeze(c: OpContext) -> ir.Value:
    """Inserts axes of size 1, one after the other: each axis counts in the result so far."""
    x = c.input("X")
    placed: list[int] = []
    rank = c.rank(x)
    for axis in c.known_integers("axes", "AxesTensor", "AxesTensorList"):
        rank += 1
        position = c.axis(axis, rank)
        placed = [other + (other >= position) for other in placed] + [position]
    return c.node("Unsqueeze", x, c.int64(sorted(placed))) if placed else x


def concat(c: OpContext) -> ir.Value:
    """Joins tensors along an axis."""
    axis = c.known_integers("axis", "AxisTensor", "AxisTensorList")
    return c.node("Concat", *c.inputs("X"), axis=axis[0] if axis else 0)


def stack(c: OpContext) -> ir.Value:
    """Joins tensors along a new axis."""
    values = c.inputs("X")
    axis = c.axis(c.integer("axis", 0), c.rank(values[0]) + 1)
    return c.node("Concat", *(c.node("Unsqueeze", value, c.int64([axis])) for value in values), axis=axis)


def unbind(c: OpContext) -> Sequence[ir.Value]:
    """Slices of size 1 along an axis, without that axis."""
    x = c.input("X")
    axis = c.axis(c.integer("axis", 0), c.rank(x))
    (count,) = c.static_dims(x, axis)
    parts = [x] if count == 1 else c.nodes("Split", x, c.int64([1] * count), outputs=count, axis=axis)
    return [c.node("Squeeze", part, c.int64([axis])) for part in parts]


def split(c: OpContext) -> Sequence[ir.Value]:
    """Parts along an axis: `num` equal ones, or `sections` with at most one size of -1 for the rest."""
    x = c.input("X")
    axis = c.axis((c.known_integers("axis", "AxisTensor", "AxisTensorList") or [0])[0], c.rank(x))
    sections = c.known_integers("sections", "SectionsTensor", "SectionsTensorList")
    if not sections:
        count = c.integer("num", 0) or sum(len(names) for names in c.op.outputs.values())
        (total,) = c.static_dims(x, axis)
        if count <= 0 or total % count:
            raise c.malformed(f"axis {axis} of size {total} does not divide into {count} parts")
        sections = [total // count] * count
    if -1 in sections:
        (total,) = c.static_dims(x, axis)
        rest = total - sum(size for size in sections if size != -1)
        sections = [rest if size == -1 else size for size in sections]
    return c.nodes("Split", x, c.int64(sections), outputs=len(sections), axis=axis)


def slice_(c: OpContext) -> ir.Value:
    """Slice; the axes of decrease_axis have size 1 afterwards and are dropped."""
    x = c.input("Input")
    axes = c.integers("axes")
    bounds = []
    for name in ("starts", "ends"):
        stem = name.capitalize()
        bound = c.integers_or_value(name, f"{stem}Tensor", f"{stem}TensorList")
        bounds.append(bound if isinstance(bound, ir.Value) else c.int64(bound))
    part = c.node("Slice", x, bounds[0], bounds[1], c.int64(axes))
    return _without_axes(c, part)


def strided_slice(c: OpContext) -> ir.Value:
    """Slice with a step."""
    bounds = []
    for name in ("starts", "ends", "strides"):
        stem = name.capitalize()
        bound = c.integers_or_value(name, f"{stem}Tensor", f"{stem}TensorList")
        bounds.append(bound if isinstance(bound, ir.Value) else c.int64(bound))
    starts, ends, steps = bounds
    part = c.node("Slice", c.input("Input"), starts, ends, c.int64(c.integers("axes")), steps)
    return _without_axes(c, part)


def _without_axes(c: OpContext, part: ir.Value) -> ir.Value:
    axes = sorted(set(c.integers("decrease_axis")))
    if not axes:
        return part
    # Paddle 2 had no 0-d tensors: a file of that time keeps one axis of size 1, and says so in the declared shape
    if len(axes) == c.rank(part) and c.declared_rank("Out") == 1:
        axes = axes[1:]
    return c.node("Squeeze", part, c.int64(axes)) if axes else part


def shape(c: OpContext) -> ir.Value:
    """The shape as a 1-D tensor: int32 in the first form of the operator, int64 in shape64."""
    dims = c.node("Shape", c.input("Input"))
    return dims if c.op.type == "shape64" else c.cast(dims, np.dtype(np.int32))


def fill_constant(c: OpContext) -> ir.Value | None:
    """A constant tensor. Of a known shape it costs no node."""
    dtype = c.dtype("dtype") or np.dtype(np.float32)
    text = c.text("str_value")
    number = float(text) if text else c.number("value", 0.0)
    if c.has("ValueTensor"):
        number = float(c.required_constant("ValueTensor").ravel()[0])
    element = np.asarray(number).astype(dtype)
    dims = c.integers_or_value("shape", "ShapeTensor", "ShapeTensorList")
    if isinstance(dims, ir.Value):
        return c.node("Expand", c.tensor(element), dims)
    if math.prod(dims) > _LARGEST_CONSTANT:
        raise c.malformed(f"a constant of shape {dims} is not credible")
    c.set_constant("Out", np.full(dims, element, dtype=dtype))
    return None


def fill_like(c: OpContext) -> ir.Value:
    """A constant in every place of a tensor of the input's shape."""
    x = c.input("X")
    dtype = c.dtype("dtype") or (np.dtype(np.float32) if x.dtype is None else x.dtype.numpy())
    element = c.tensor(np.asarray(c.number("value", 0.0)).astype(dtype))
    return c.node("Expand", element, c.node("Shape", x))


def full_int_array(c: OpContext) -> None:
    """A 1-D constant of integers (PIR only). No node."""
    c.set_constant("Out", np.asarray(c.integers("value"), dtype=c.dtype("dtype") or np.dtype(np.int64)))


def assign_value(c: OpContext) -> None:
    """A constant tensor with its numbers in the attributes. No node."""
    dtype = c.dtype("dtype") or np.dtype(np.float32)
    numbers = next(
        (
            values
            for name in ("values", "fp32_values", "fp64_values", "int32_values", "int64_values", "bool_values")
            if (values := c.numbers(name))
        ),
        [],
    )
    c.set_constant("Out", np.asarray(numbers).astype(dtype).reshape(c.integers("shape")))


def expand(c: OpContext) -> ir.Value:
    """Repeats axes of size 1; -1 leaves a size as it is, which is ONNX's size 1."""
    target = c.integers_or_value("shape", "Shape", "expand_shapes_tensor")
    if isinstance(target, ir.Value):
        one = c.int64([1])
        return c.node("Expand", c.input("X"), c.node("Max", target, one))
    return c.node("Expand", c.input("X"), c.int64([1 if size == -1 else size for size in target]))


def expand_as(c: OpContext) -> ir.Value:
    """Repeats axes of size 1 up to the shape of another tensor."""
    target = c.integers("target_shape")
    other = c.optional("Y")
    if other is not None:
        return c.node("Expand", c.input("X"), c.node("Shape", other))
    return c.node("Expand", c.input("X"), c.int64(target))


def tile(c: OpContext) -> ir.Value:
    """Repeats the tensor along each axis; missing numbers count as 1 at the front."""
    x = c.input("X")
    times = c.known_integers("repeat_times", "RepeatTimes", "repeat_times_tensor")
    rank = c.rank(x)
    if len(times) > rank:
        x = c.node("Unsqueeze", x, c.int64(range(len(times) - rank)))
    return c.node("Tile", x, c.int64([1] * (rank - len(times)) + times))


def flip(c: OpContext) -> ir.Value:
    """Elements in reverse order along some axes."""
    axes = c.integers("axis")
    count = len(axes)
    lowest = np.iinfo(np.int64).min
    return c.node(
        "Slice", c.input("X"), c.int64([-1] * count), c.int64([lowest] * count), c.int64(axes), c.int64([-1] * count)
    )


def roll(c: OpContext) -> ir.Value:
    """Elements move along some axes and come back in at the other end; without axes, in the flattened tensor."""
    x = c.input("X")
    shifts = c.known_integers("shifts", "ShiftsTensor", "ShiftsTensorList")
    axes = c.integers("axis")
    if not axes:
        flat = _rolled(c, c.reshape(x, [-1]), shifts[0], 0)
        return c.node("Reshape", flat, c.node("Shape", x))
    for shift, axis in zip(shifts, axes, strict=True):
        x = _rolled(c, x, shift, axis)
    return x


def _rolled(c: OpContext, x: ir.Value, shift: int, axis: int) -> ir.Value:
    size = c.dims(x)[c.axis(axis, c.rank(x))]
    shift = shift if size is None else shift % size
    if shift == 0:
        return x
    last, at = np.iinfo(np.int64).max, c.int64([axis])
    tail = c.node("Slice", x, c.int64([-shift]), c.int64([last]), at)
    head = c.node("Slice", x, c.int64([0]), c.int64([-shift]), at)
    return c.node("Concat", tail, head, axis=axis)


def pixel_shuffle(c: OpContext) -> ir.Value:
    """Channels become pixels, in the order channel, row, column."""
    if c.text("data_format", "NCHW") != "NCHW":
        raise c.unsupported("layout NHWC is not read, only NCHW is", "export the model with data_format='NCHW'")
    return c.node("DepthToSpace", c.input("X"), blocksize=c.integer("upscale_factor", 1), mode="CRD")
