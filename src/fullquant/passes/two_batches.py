"""What two copies of a graph, folded for two batch sizes, tell of values that depend on the batch alone."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_int,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    node_label,
    plain_attributes,
    producer_of,
    prune,
    replace_node,
    value_name,
)
from fullquant.passes.batch_expand import take_batch, takes_batch

_log = logging.getLogger(__name__)

#: Operators that repeat a first axis of one element for all images themselves.
_BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "MatMul", "Where"})


@dataclass(frozen=True)
class BatchCopy:
    """The graph for one batch size: its constants, and the static shapes of its values."""

    batch: int
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]


Copies = tuple[BatchCopy, BatchCopy]


def repeated_rows(value: ir.Value, copies: Copies) -> bool:
    """A computed constant whose rows, one for each image, are all equal is held once; True if it was changed.

    Where it is added to or multiplied with a tensor that has the batch, its one row is repeated by that operator;
    elsewhere by an Expand that takes the batch from the image.
    """
    node, row = value.producer(), _row(value_name(value), copies)
    if node is None or row is None or value.is_graph_output():
        return False
    graph = graph_of(node)
    image = graph.inputs[0]
    if node.op_type == "Expand" and node.inputs[1] is not None:
        if takes_batch(node.inputs[1], image):
            return False
        take_batch(node, image, row.shape)
        return True
    readers = [(reader, index) for reader, index in value.uses() if not _is_folded(reader, copies)]
    if not readers:
        return False
    name = value_name(value)
    held = add_initializer(graph, f"{name}.row", row[None])
    expand: ir.Value | None = None
    for reader, index in readers:
        if _broadcasts(reader, index, row.ndim + 1, copies):
            reader.replace_input_with(index, held)
            continue
        if expand is None:
            expand = insert_before(reader, "Expand", [held, held], output=f"{name}.rows", like=value)
            made = expand.producer()
            assert made is not None
            take_batch(made, image, row.shape)
        reader.replace_input_with(index, expand)
    if not list(held.uses()):
        graph.initializers.pop(value_name(held))
    prune(node)
    return True


def _row(name: str, copies: Copies) -> Array | None:
    """The row that a constant repeats for every image of both copies; None where it does not."""
    arrays = [copy.constants.get(name) for copy in copies]
    if any(a is None or a.ndim < 1 or len(a) != c.batch for a, c in zip(arrays, copies, strict=True)):
        return None
    first, second = arrays
    assert first is not None
    assert second is not None
    same = first.shape[1:] == second.shape[1:] and (first == first[0]).all() and (second == first[0]).all()
    return first[0] if same else None


def _is_folded(node: ir.Node, copies: Copies) -> bool:
    """Whether the node's results are constants of both copies, so that it goes with this value's successors."""
    names = [value_name(value) for value in node.outputs if value.name]
    return all(name in copy.constants or name not in copy.shapes for copy in copies for name in names)


def _broadcasts(node: ir.Node, index: int, rank: int, copies: Copies) -> bool:
    """Whether a first axis of 1 at this input gives the same result: another input has the batch there."""
    if node.op_type not in _BROADCASTS or node.domain != "":
        return False
    others = [v for i, v in enumerate(node.inputs) if v is not None and i != index]
    shapes = [[copy.shapes.get(value_name(other)) for copy in copies] for other in others]
    return (rank > 2 or node.op_type != "MatMul") and any(
        all(s is not None and len(s) == rank and s[0] == c.batch for s, c in zip(pair, copies, strict=True))
        for pair in shapes
    )


def static_resize(node: ir.Node, copies: Copies) -> bool:
    """Sizes of a Resize that hold the batch become those of the axes behind it; True if it was changed."""
    sizes, data = input_at(node, 3), node.inputs[0]
    if sizes is None or data is None or ints_constant(sizes) is not None or "axes" in node.attributes:
        return False
    before = [copy.shapes.get(value_name(data)) for copy in copies]
    after = [copy.shapes.get(value_name(node.outputs[0])) for copy in copies]
    if None in (*before, *after):
        return False
    (b1, b2), (a1, a2) = [s or () for s in before], [s or () for s in after]
    moved = [axis for axis, (old, new) in enumerate(zip(b1, a1, strict=True)) if old != new]
    if (a1[0], a2[0]) != (b1[0], b2[0]) or a1[1:] != a2[1:]:
        _log.debug("%s resizes the batch; kept", node_label(node))
        return False
    axes = list(range(2, len(a1))) if set(moved) <= set(range(2, len(a1))) else list(range(1, len(a1)))
    target = add_initializer(graph_of(node), f"{node.name}.sizes", np.asarray([a1[axis] for axis in axes], np.int64))
    replace_node(node, "Resize", [data, None, None, target], {**plain_attributes(node), "axes": axes})
    return True


def strided_gather(node: ir.Node, copies: Copies) -> bool:
    """Gather(x as a vector, n * stride + offsets) -> Reshape or Gather of each image; True if it was changed.

    PyTorch's exporter writes as_strided so: the offsets of image n are those of image 0 moved by the size of an image.
    """
    flat = producer_of(node.inputs[0], "Reshape")
    if flat is None or attribute_int(node, "axis", 0) != 0 or node.inputs[1] is None:
        return False
    source, indices = flat.inputs[0], value_name(node.inputs[1])
    if source is None or ints_constant(flat.inputs[1]) != [-1] or not dims(source):
        return False
    offsets = [_offsets(copy, copy.constants.get(indices), copy.shapes.get(value_name(source))) for copy in copies]
    first, second = offsets
    if first is None or second is None or not np.array_equal(first, second):
        return False
    graph, stride = graph_of(node), math.prod((copies[0].shapes[value_name(source)])[1:])
    if np.array_equal(first.reshape(-1), np.arange(stride)):
        target = add_initializer(graph, f"{node.name}.shape", np.asarray([0, *first.shape], np.int64))
        replace_node(node, "Reshape", [source, target])
        return True
    target = add_initializer(graph, f"{node.name}.shape", np.asarray([0, stride], np.int64))
    rows = insert_before(node, "Reshape", [source, target])
    held = add_initializer(graph, f"{node.name}.offsets", first.astype(np.int64))
    replace_node(node, "Gather", [rows, held], {"axis": 1})
    return True


def _offsets(copy: BatchCopy, indices: Array | None, source: tuple[int, ...] | None) -> Array | None:
    """Indices of one image, where those of image n are these plus n times the size of an image."""
    if indices is None or source is None or indices.ndim < 1 or (len(indices), source[0]) != (copy.batch, copy.batch):
        return None
    stride = math.prod(source[1:])
    moved = indices - np.arange(copy.batch).reshape(-1, *[1] * (indices.ndim - 1)) * stride
    inside = moved.min(initial=0) >= 0 and moved.max(initial=0) < stride
    return np.asarray(moved[0]) if inside and (moved == moved[0]).all() else None
