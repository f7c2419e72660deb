"""Constants joined to a computed tensor (class and distillation tokens) become rows of zeros and an addition."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_int,
    constant_value,
    dims,
    graph_of,
    insert_before,
    node_label,
    replace_node,
)

_log = logging.getLogger(__name__)


def concat_constants(model: ir.Model) -> int:
    """Concat(c, x) -> Add(Pad(x), c'), c' having zeros where x is; for constants with one row per image.

    Why: the constant of a model that was exported for one image holds the batch size, and no constant has the open
    batch; a sum broadcasts. In integers it is exact beside the sum with the position embedding that mostly follows.
    """
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.op_type != "Concat" or node.domain != "":
            continue
        for index, value in enumerate(node.inputs):
            array = constant_value(value)
            if array is not None and array.ndim > 1 and array.shape[0] == 1 and add_rows(node, index, array):
                count += 1
                break
    return count


def add_rows(node: ir.Node, index: int, rows: Array, shape: Sequence[int] | None = None) -> bool:
    """Takes the constant `rows`, [1, ...], out of a Concat, of which it is the first or last input; False if not so.

    Concat([c, x...]) = Pad(Concat(x...)) + [c, 0]; the zero-padded result has the same shape.
    shape: that of the result, where the graph doesn't know it yet (sizes of the batch are not looked at).
    """
    result = node.outputs[0]
    sizes: Sequence[int | str | None] | None = dims(result) if shape is None else [None, *shape[1:]]
    kinds = {value.dtype for value in node.inputs if value is not None}
    rank = rows.ndim
    axis = attribute_int(node, "axis", 0) % rank
    last = index == len(node.inputs) - 1
    others = [value for position, value in enumerate(node.inputs) if position != index]
    if axis == 0 or index not in (0, len(node.inputs) - 1) or not others or kinds != {ir.DataType.FLOAT}:
        return False
    if all(constant_value(value) is not None for value in others):
        return False
    length = None if sizes is None or len(sizes) != rank else sizes[axis]
    if not isinstance(length, int):
        _log.debug("%s joins a constant along an axis of unknown size; kept", node_label(node))
        return False
    count = rows.shape[axis]
    joined = others[0]
    if len(others) > 1:
        joined = insert_before(node, "Concat", others, {"axis": axis}, output=f"{result.name}.computed")
        joined.type = result.type
        joined.shape = ir.Shape([*(sizes or ())[:axis], length - count, *(sizes or ())[axis + 1 :]])
    pads = np.zeros(2 * rank, np.int64)
    pads[axis + (rank if last else 0)] = count
    graph = graph_of(node)
    padded = insert_before(
        node, "Pad", [joined, add_initializer(graph, f"{node.name}.pads", pads)], {"mode": "constant"},
        output=f"{result.name}.padded", like=result,
    )  # fmt: skip
    around = [(0, 0)] * rank
    around[axis] = (length - count, 0) if last else (0, length - count)
    constant = add_initializer(graph, f"{node.name}.rows", np.pad(rows, around))
    replace_node(node, "Add", [padded, constant])
    return True
