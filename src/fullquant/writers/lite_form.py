"""The same integer model in operators that Paddle Lite's NPU bridge computes.

Lite has no TIM-VX converter for `pad`, and hands `strided_slice` to a TIM-VX Slice that knows no steps (Paddle-Lite
3d329c954c, lite/kernels/nnadapter/converter/all.h; lite/backends/nnadapter/nnadapter/src/driver/verisilicon_timvx/
converter/slice.cc). A ResNet's parameter-free shortcut, a slice with steps and zeros for the new channels, would so cut
the NPU's part of the network in three, and its slices would be wrong. Both are a convolution with an identity matrix:

    y[n, o, h, w] = x[n, o - a, s*h - p, s*w - p]     for a <= o < a + C, else 0

Its weights are 1 and 0, stored as 32 and 0 with the scale 1/32, and input and output share their scale, so that every
runtime moves the integers unchanged: no rounding is added, and none is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fullquant.graph.copying import copied
from fullquant.graph.edit import (
    add_initializer,
    attribute_string,
    constant_value,
    dims,
    input_at,
    ints_constant,
    producer_of,
    rank,
    replace_node,
    scalar_constant,
    sole_consumer,
    value_name,
)
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.placement.decision import Decision, Placement

#: Targets whose files Paddle Lite converts.
LITE_TARGETS = frozenset({"paddle_lite", "verisilicon_timvx"})
# 32 lies in [-64, 63] too, the range of reduce_range; 1/32 is exact in every runtime.
_ONE, _STEP = 32, 1 / 32
_REASON = "ones and zeros that move an int8 tensor in place of a slice with steps or of padding"


def lite_form(
    model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]
) -> tuple[ir.Model, Placement, Mapping[str, QParams]]:
    """(model, placement, scales) with slices with steps and paddings of int8 images as identity convolutions.

    Only [N, C, H, W] tensors of known C whose placement gives input and output one scale; everything else stays. What
    is given is not changed. Tensors keep their names; the one between a slice and its padding disappears.
    """
    if not any(_is_moved(node, placement) for node in model.graph):
        return model, placement, qparams
    copy = copied(model)
    decisions, scales = dict(placement.decisions), dict(qparams)
    axis = _weight_axis(placement)
    for node in list(copy.graph):
        if node.graph is None:
            continue
        move = _move(node, placement)
        if move is not None and not _is_taken_by_a_padding(node, placement):
            weight, rows = _convolve(copy.graph, node, move)
            spec = QuantSpec(-127, 127, axis=axis)
            decisions[weight] = Decision(weight, "weight", spec, _REASON)
            scales[weight] = symmetric(spec, np.full(() if axis is None else (rows,), _STEP, dtype=np.float32))
    return copy, Placement(placement.target, decisions), scales


@dataclass(frozen=True)
class _Move:
    """source: what is read; channels: (before, kept, after); pads: (top, left, bottom, right); strides: (h, w)."""

    source: ir.Value
    channels: tuple[int, int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    strides: tuple[int, int] = (1, 1)


def _is_moved(node: ir.Node, placement: Placement) -> bool:
    return _move(node, placement) is not None


def _move(node: ir.Node, placement: Placement) -> _Move | None:
    """What a Slice or Pad does to an int8 image, None where a convolution cannot do it, or for other operators."""
    if node.domain not in ("", "ai.onnx") or not _keeps_the_scale(node, placement):
        return None
    if node.op_type == "Slice":
        return _strided(node)
    if node.op_type == "Pad":
        return _padding(node, placement)
    return None


def _keeps_the_scale(node: ir.Node, placement: Placement) -> bool:
    """Whether input and output are int8 with one scale, for every reader."""
    source = input_at(node, 0)
    if source is None or source.const_value is not None or rank(source) != 4:
        return False
    names = (value_name(source), value_name(node.outputs[0]))
    found = [placement.get(name) for name in names]
    if any(one is None or one.spec is None or one.consumers is not None for one in found):
        return False
    return placement.scale_owner(names[0]) == placement.scale_owner(names[1])


def _channels(value: ir.Value | None) -> int | None:
    sizes = dims(value)
    return sizes[1] if sizes is not None and len(sizes) == 4 and isinstance(sizes[1], int) else None


def _strided(node: ir.Node) -> _Move | None:
    """A slice of height and width that starts at 0, ends at the end, and takes every s-th row or column."""
    source = node.inputs[0]
    channels = _channels(source)
    starts, ends, axes, steps = (ints_constant(input_at(node, index)) for index in (1, 2, 3, 4))
    if source is None or channels is None or starts is None or ends is None or axes is None or steps is None:
        return None
    axes = [axis % 4 for axis in axes]
    sizes = dims(source) or ()
    strides = {2: 1, 3: 1}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = sizes[axis]
        whole = start == 0 and (end >= np.iinfo(np.int32).max or (isinstance(size, int) and end >= size))
        if axis not in strides or step < 1 or not whole:
            return None
        strides[axis] = step
    if strides == {2: 1, 3: 1}:
        return None
    return _Move(source, (0, channels, 0), strides=(strides[2], strides[3]))


def _padding(node: ir.Node, placement: Placement) -> _Move | None:
    """Zeros around channels, height or width; with the strides of the slice in front, where nothing else reads that."""
    source = node.inputs[0]
    channels, pads = _channels(source), ints_constant(input_at(node, 1))
    if source is None or channels is None or pads is None or attribute_string(node, "mode", "constant") != "constant":
        return None
    fill, axes = input_at(node, 2), input_at(node, 3)
    if fill is not None and (constant_value(fill) is None or scalar_constant(fill) != 0.0):
        return None
    named = list(range(4)) if axes is None else [axis % 4 for axis in ints_constant(axes) or ()]
    if len(pads) != 2 * len(named) or min(pads, default=0) < 0:
        return None
    sides = {axis: (pads[index], pads[index + len(named)]) for index, axis in enumerate(named)}
    none = (0, 0)
    if sides.get(0, none) != none:
        return None
    before, after = sides.get(1, none)
    (top, bottom), (left, right) = sides.get(2, none), sides.get(3, none)
    move = _Move(source, (before, channels, after), (top, left, bottom, right))
    slice_ = producer_of(source, "Slice")
    inner = None if slice_ is None or move.pads != (0, 0, 0, 0) else _move(slice_, placement)
    if inner is None or slice_ is None or sole_consumer(slice_.outputs[0]) is not node:
        return move
    return replace(move, source=inner.source, strides=inner.strides)


def _is_taken_by_a_padding(node: ir.Node, placement: Placement) -> bool:
    """Whether the slice becomes a part of the convolution of the padding behind it."""
    reader = sole_consumer(node.outputs[0]) if node.op_type == "Slice" else None
    move = None if reader is None or reader.op_type != "Pad" else _move(reader, placement)
    return move is not None and move.source is node.inputs[0]


def _weight_axis(placement: Placement) -> int | None:
    """0 where convolutions have a scale for each channel, None where they have one for each tensor."""
    axes = [d.spec.axis for d in placement if d.kind == "weight" and d.spec is not None]
    return 0 if any(axis is not None for axis in axes) else None


def _convolve(graph: ir.Graph, node: ir.Node, move: _Move) -> tuple[str, int]:
    """Puts the convolution in the node's place; (name of its weight [C_out, C or 1, 1, 1], C_out)."""
    before, kept, after = move.channels
    depthwise = before == after == 0
    if depthwise:
        matrix = np.ones((kept, 1), dtype=np.float32)
    else:
        matrix = np.eye(before + kept + after, kept, -before, dtype=np.float32)
    weight = add_initializer(graph, f"{node.name or node.op_type}.identity", matrix[:, :, None, None])
    attributes: dict[str, int | list[int]] = {
        "kernel_shape": [1, 1], "dilations": [1, 1], "strides": list(move.strides), "pads": list(move.pads),
        "group": kept if depthwise else 1,
    }  # fmt: skip
    replace_node(node, "Conv", [move.source, weight], attributes)
    return value_name(weight), len(matrix)
