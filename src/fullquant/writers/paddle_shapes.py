"""Rules for operators that move or select data: ONNX operator -> Paddle operators."""

from __future__ import annotations

import numpy as np

from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.writers.paddle_emitter import Emitter, dims_of, dtype_of
from fullquant.writers.paddle_more import pad_by_content

_INT32 = np.iinfo(np.int32)


def _with_xshape(emit: Emitter, kind: str, **attributes: list[int]) -> None:
    """Operators of Paddle's second generation have an output XShape that only training reads."""
    outputs = {"Out": [emit.output()], "XShape": [emit.temporary("xshape", [0, *dims_of(emit.required(0))])]}
    emit.op(kind, {"X": [emit.read(0)]}, outputs, **attributes)


def _target_shape(emit: Emitter) -> list[int]:
    """The shape that input 1 asks for: its constant, else the output's recorded shape with one -1 at most."""
    value = emit.required(1)
    if value.const_value is not None:
        return emit.constant_ints(1) or []
    output = emit.node.outputs[0]
    dims = dims_of(output)
    if output.shape is None or dims.count(-1) > 1:
        raise emit.refuse("the target shape is computed at run time", "give input_shape when reading the model")
    return dims


def reshape(emit: Emitter) -> None:
    """Reshape -> reshape2; 0 copies the input's size and -1 is inferred in both."""
    shape = _target_shape(emit)
    if 0 in shape and emit.int_attribute("allowzero", 0):
        raise emit.refuse("allowzero makes an empty tensor", "export without allowzero")
    _with_xshape(emit, "reshape2", shape=shape)


def flatten(emit: Emitter) -> None:
    """Flatten(axis=1) -> flatten_contiguous_range(1, -1); other axes -> reshape2 to known sizes."""
    shape = emit.required(0).shape
    rank = emit.rank(0)
    axis = emit.int_attribute("axis", 1)
    axis = axis if rank is None or axis >= 0 else axis + rank
    if axis == 1 and rank != 1:
        emit.op(
            "flatten_contiguous_range",
            {"X": [emit.read(0)]},
            {"Out": [emit.output()], "XShape": [emit.temporary("xshape", [0, *dims_of(emit.required(0))])]},
            start_axis=1,
            stop_axis=-1 if rank is None else rank - 1,
        )
        return
    dims = [] if shape is None else dims_of(emit.required(0))
    if shape is not None and -1 not in dims[:axis]:
        _with_xshape(emit, "reshape2", shape=[int(np.prod(dims[:axis])), -1])
    elif shape is not None and -1 not in dims[axis:]:
        _with_xshape(emit, "reshape2", shape=[-1, int(np.prod(dims[axis:]))])
    else:
        raise emit.refuse(f"axis {axis} needs known sizes", "give input_shape when reading the model")


def transpose(emit: Emitter) -> None:
    """Transpose -> transpose2."""
    rank = emit.rank(0)
    perm = emit.ints_attribute("perm", range(rank - 1, -1, -1) if rank is not None else [])
    if not perm:
        raise emit.refuse("no perm and an input of unknown rank", "run shape inference")
    _with_xshape(emit, "transpose2", axis=perm)


def squeeze(emit: Emitter) -> None:
    """Squeeze -> squeeze2; without axes every axis of size 1 goes, in both."""
    _with_xshape(emit, "squeeze2", axes=emit.constant_ints(1) or [])


def unsqueeze(emit: Emitter) -> None:
    """Unsqueeze -> unsqueeze2. Paddle inserts one axis after the other, so they are given ascending in the output."""
    axes, rank = emit.constant_ints(1), emit.rank(0)
    if axes is None or (rank is None and any(axis < 0 for axis in axes)):
        raise emit.refuse("needs constant axes, counted from the front", "run shape inference")
    total = len(axes) + (rank or 0)
    _with_xshape(emit, "unsqueeze2", axes=sorted(axis if axis >= 0 else axis + total for axis in axes))


def slice_(emit: Emitter) -> None:
    """Slice -> slice, or strided_slice where a step is not 1. Bounds beyond int32 mean "to the end" in both."""
    starts, ends = emit.constant_ints(1), emit.constant_ints(2)
    if starts is None or ends is None:
        raise emit.refuse("needs constant starts and ends", "give input_shape when reading the model")
    axes, steps = emit.constant_ints(3), emit.constant_ints(4)
    axes = list(range(len(starts))) if axes is None else axes
    rank = emit.rank(0)
    if rank is not None:
        axes = [axis % rank for axis in axes]
    if any(axis < 0 for axis in axes):
        raise emit.refuse("negative axes", "run shape inference")
    attributes: dict[str, list[int]] = {
        "axes": axes,
        "starts": [max(_INT32.min, min(_INT32.max, bound)) for bound in starts],
        "ends": [max(_INT32.min, min(_INT32.max, bound)) for bound in ends],
        "infer_flags": [1] * len(axes),
        "decrease_axis": [],
    }
    strided = steps is not None and any(step != 1 for step in steps)
    if strided and steps is not None:
        attributes["strides"] = steps
    emit.op("strided_slice" if strided else "slice", {"Input": [emit.read(0)]}, {"Out": [emit.output()]}, **attributes)


def gather(emit: Emitter) -> None:
    """Gather with one constant index -> slice without that axis; with a constant list -> gather."""
    indices, rank = emit.constant(1), emit.rank(0)
    axis = emit.int_attribute("axis", 0)
    axis = axis if rank is None else axis % rank
    if indices is None or indices.ndim > 1 or axis < 0:
        raise emit.refuse("needs constant indices, a number or a list, and a known rank", "run shape inference")
    if indices.ndim == 1:
        index = emit.parameter(str(emit.required(1).name), indices.astype(np.int64))
        emit.op("gather", {"X": [emit.read(0)], "Index": [index]}, {"Out": [emit.output()]}, axis=axis)
        return
    start = int(indices)
    emit.op(
        "slice",
        {"Input": [emit.read(0)]},
        {"Out": [emit.output()]},
        axes=[axis],
        starts=[start],
        ends=[_INT32.max if start == -1 else start + 1],
        infer_flags=[1],
        decrease_axis=[axis],
    )


def pad(emit: Emitter) -> None:
    """Pad with a constant -> pad, whose list pairs both sides of each axis; with the map's own pixels -> pad3d."""
    mode = emit.string_attribute("mode", "constant")
    pads, rank = emit.constant_ints(1), emit.rank(0)
    if pads is None or rank is None or any(side < 0 for side in pads):
        raise emit.refuse(f"mode {mode}, pads {pads}: only padding by known sizes can be written", "rewrite it")
    axes = emit.constant_ints(3)
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    paddings = [0] * 2 * rank
    for position, axis in enumerate(axes):
        paddings[2 * axis] = pads[position]
        paddings[2 * axis + 1] = pads[position + len(axes)]
    if mode != "constant":
        pad_by_content(emit, mode, paddings)
        return
    fill = emit.constant(2)
    value = 0.0 if fill is None or fill.size == 0 else float(fill.reshape(-1)[0])
    emit.op("pad", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, paddings=paddings, pad_value=value)


def split(emit: Emitter) -> None:
    """Split -> split by sizes where they are given or known, else into equal parts."""
    outputs = [emit.output(index) for index in range(len(emit.node.outputs))]
    axis, rank = emit.int_attribute("axis", 0), emit.rank(0)
    axis = axis if rank is None else axis % rank
    sections = emit.constant_ints(1)
    if sections is None:
        shape = emit.required(0).shape
        size = None if shape is None else dims_of(emit.required(0))[axis]
        if size is None or size < 0 or size % len(outputs):
            raise emit.refuse(f"{size} cannot be split evenly into {len(outputs)}", "give the sizes as input 1")
        sections = [size // len(outputs)] * len(outputs)
    emit.op("split", {"X": [emit.read(0)]}, {"Out": outputs}, axis=axis, sections=sections, num=0)


def concat(emit: Emitter) -> None:
    """Concat -> concat."""
    variables = [emit.read(index) for index in range(len(emit.node.inputs))]
    emit.op("concat", {"X": variables}, {"Out": [emit.output()]}, axis=emit.int_attribute("axis", 0))


def shape(emit: Emitter) -> None:
    """Shape -> shape (int32, of all axes), slice, cast to int64. Shape64 is unknown to Paddle 2."""
    rank = len(dims_of(emit.required(0)))
    start, end = emit.int_attribute("start", 0), emit.int_attribute("end", rank)
    whole, part = emit.temporary("shape", [rank], np.int32), emit.temporary("part", [end - start], np.int32)
    emit.builder.add_operator("shape", {"Input": [emit.read(0)]}, {"Out": [whole]}, {})
    bounds = {"axes": [0], "starts": [start], "ends": [end], "infer_flags": [1], "decrease_axis": list[int]()}
    emit.builder.add_operator("slice", {"Input": [whole]}, {"Out": [part]}, bounds)
    _cast(emit, part, emit.output(), np.int32, np.int64)


def _cast(emit: Emitter, source: str, target: str, before: type, after: type) -> None:
    numbers = {"in_dtype": int(NUMBER_OF_DTYPE[np.dtype(before)]), "out_dtype": int(NUMBER_OF_DTYPE[np.dtype(after)])}
    # Integers have no scale, so no threshold.
    emit.builder.add_operator("cast", {"X": [source]}, {"Out": [target]}, numbers)


def _expand_to_computed(emit: Emitter) -> None:
    """The target as one int32 tensor, which is what Paddle Lite reads."""
    target = emit.temporary("target", dims_of(emit.required(1)), np.int32)
    _cast(emit, emit.read(1), target, np.int64, np.int32)
    sizes = dims_of(emit.node.outputs[0])
    emit.op("expand_v2", {"X": [emit.read(0)], "Shape": [target]}, {"Out": [emit.output()]}, shape=sizes)


def expand(emit: Emitter) -> None:
    """Expand -> expand_v2, where -1 keeps a size; ONNX keeps it where the target is 1."""
    if emit.required(1).const_value is None:
        _expand_to_computed(emit)
        return
    shape, rank = _target_shape(emit), emit.rank(0)
    if rank is None:
        raise emit.refuse("the input's rank is unknown", "run shape inference")
    shape = [1] * (rank - len(shape)) + shape
    new = len(shape) - rank
    kept = [size if position < new or size != 1 else -1 for position, size in enumerate(shape)]
    if any(size < 0 for size in kept[:new]):
        raise emit.refuse("a new axis of unknown size", "give input_shape when reading the model")
    emit.op("expand_v2", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, shape=kept)


def cast(emit: Emitter) -> None:
    """Cast -> cast between the element types that Paddle has."""
    source, target = dtype_of(emit.required(0)), dtype_of(emit.node.outputs[0])
    if source not in NUMBER_OF_DTYPE or target not in NUMBER_OF_DTYPE:
        raise emit.refuse(f"Paddle has no type for {source} or {target}", "cast to another type")
    numbers = {"in_dtype": int(NUMBER_OF_DTYPE[source]), "out_dtype": int(NUMBER_OF_DTYPE[target])}
    emit.op("cast", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, **numbers)
