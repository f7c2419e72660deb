"""Rows of zeros around a sequence, in operators that every Paddle runtime computes.

`pad` is what Paddle has for it, and no good: oneDNN's kernel writes beyond its output (PaddlePaddle 3.3.1), and Paddle
Lite has no converter to TIM-VX, so that the NPU's part of the network would be cut in two. The same rows come from the
sequence itself, for any batch:

    z = x[:, :k] - x[:, :k],    Pad(x, k rows) = Concat(z, x)

All have the scale of x, so that every runtime moves its integers unchanged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_string,
    constant_value,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    replace_node,
    scalar_constant,
    value_name,
)
from fullquant.placement.decision import Decision, Placement

_RANK = 3


def rows_of_zeros(model: ir.Model, placement: Placement | None) -> tuple[ir.Model, Placement | None]:
    """(model, placement) with Pads of one axis of sequences as Slice, Sub and Concat; what is given is not changed.

    Only zeros beside [N, a, b], along a or b, not more of them than the axis has already, and in int8 where input and
    output have one scale for all readers. placement: None for a float program.
    """
    if not any(_rows(node, placement) for node in model.graph):
        return model, placement
    copy = ir.from_proto(ir.to_proto(model))
    decisions = {} if placement is None else dict(placement.decisions)
    for node in list(copy.graph):
        rows = _rows(node, placement)
        if rows is None:
            continue
        axis, begin, end = rows
        source = node.inputs[0]
        assert source is not None
        parts = [_zeros(node, source, axis, count, decisions) for count in (begin, end)]
        joined = [part for part in (parts[0], source, parts[1]) if part is not None]
        replace_node(node, "Concat", joined, {"axis": axis})
    return copy, None if placement is None else Placement(placement.target, decisions)


def _rows(node: ir.Node, placement: Placement | None) -> tuple[int, int, int] | None:
    """(axis, rows in front, rows behind) of a Pad that can be written so; None for everything else."""
    if node.op_type != "Pad" or node.domain != "" or attribute_string(node, "mode", "constant") != "constant":
        return None
    source, pads, fill = node.inputs[0], ints_constant(input_at(node, 1)), input_at(node, 2)
    sizes = dims(source)
    if source is None or sizes is None or len(sizes) != _RANK or pads is None or min(pads, default=-1) < 0:
        return None
    if fill is not None and (constant_value(fill) is None or scalar_constant(fill) != 0.0):
        return None
    axes = ints_constant(input_at(node, 3)) if input_at(node, 3) is not None else list(range(_RANK))
    if axes is None or len(pads) != 2 * len(axes) or not _keeps_the_scale(node, source, placement):
        return None
    sides = {axis % _RANK: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    padded = {axis: side for axis, side in sides.items() if side != (0, 0)}
    if len(padded) != 1:
        return None
    ((axis, (begin, end)),) = padded.items()
    size = sizes[axis]
    return (axis, begin, end) if axis and isinstance(size, int) and max(begin, end) <= size else None


def _keeps_the_scale(node: ir.Node, source: ir.Value, placement: Placement | None) -> bool:
    if placement is None:
        return True
    names = (value_name(source), value_name(node.outputs[0]))
    found = [placement.get(name) for name in names]
    if any(one is None or one.spec is None or one.fused or one.consumers is not None for one in found):
        return False
    return placement.scale_owner(names[0]) == placement.scale_owner(names[1])


def _zeros(node: ir.Node, source: ir.Value, axis: int, count: int, decisions: dict[str, Decision]) -> ir.Value | None:
    """`count` rows of x minus themselves, with the scale of x; None for no rows."""
    if not count:
        return None
    graph = graph_of(node)
    bounds = [add_initializer(graph, f"{node.name}.{name}", np.asarray([number], np.int64))
              for name, number in (("starts", 0), ("ends", count), ("axes", axis))]  # fmt: skip
    sizes = [size if index != axis else count for index, size in enumerate(dims(source) or ())]
    first = insert_before(node, "Slice", [source, *bounds], like=source)
    zeros = insert_before(node, "Sub", [first, first], like=source)
    for value in (first, zeros):
        value.shape = ir.Shape(sizes)
        decision = decisions.get(value_name(source))
        if decision is not None:
            name = value_name(value)
            reason = f"rows of {decision.tensor!r}, for the zeros beside them"
            decisions[name] = replace(decision, tensor=name, shares=decision.shares or decision.tensor, reason=reason)
    return zeros
