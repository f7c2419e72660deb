"""Rows that a transformer puts beside its patches (class token, distillation token, registers) become one addition."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_int,
    attribute_string,
    constant_operand,
    constant_value,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    node_label,
    producer_of,
    replace_node,
    scalar_constant,
    sole_consumer,
)

_log = logging.getLogger(__name__)

# A sequence: [batch, tokens, width], or the two last ones the other way round.
_RANK = 3


def pad_tokens(model: ir.Model) -> int:
    """Concat(token for each image, x, ...) [+ positions] -> Pad(x, zeros) + constant; returns the number of rewrites.

    x [N, L, D] and tokens t [1, k, D] in front of it and behind, along either axis but the batch; positions p
    [1, k + L, D] or what broadcasts to it, added behind the Concat or to x in front of it:

        Concat(t, x) + p = Pad(x, k rows of 0) + c,    c = Concat(t, 0) + p

    Exact, but for the order of two float sums. No shape is asked for any more, so that any batch comes in. In integers
    x alone has the scale that the concatenation had for x and the token together, and one sum is rounded, as before.
    Without positions a sum is rounded where the Concat only moved.
    """
    count = 0
    for node in list(model.graph):
        if node.graph is not None and node.op_type == "Concat" and node.domain == "":
            count += _rewrite(node)
    return count


def _rewrite(node: ir.Node) -> bool:
    axis, sizes = attribute_int(node, "axis", 0) % _RANK, _sizes(node.outputs[0])
    if sizes is None or axis == 0:
        return False
    tokens = [_token(value, node.outputs[0]) for value in node.inputs]
    computed = [index for index, token in enumerate(tokens) if token is None]
    if len(computed) != 1 or len(tokens) < 2:
        return False
    place = computed[0]
    data, length = node.inputs[place], (_sizes(node.inputs[place]) or (0, 0, 0))[axis]
    front, back = ([t for t in part if t is not None] for part in (tokens[:place], tokens[place + 1 :]))
    begin, end = (sum(token.shape[axis] for token in part) for part in (front, back))
    if data is None or not length or begin + length + end != sizes[axis]:
        return False
    data, offset, (more_front, more_back) = _offset_in_front(data, node, axis)
    constant = np.concatenate([*front, np.broadcast_to(offset, _with(sizes, axis, length)), *back], axis=axis)
    last, positions = _offset_behind(node)
    constant = np.ascontiguousarray(constant + positions, dtype=np.float32)
    pads = [0] * (2 * _RANK)
    pads[axis], pads[_RANK + axis] = begin + more_front, end + more_back
    around = add_initializer(graph_of(node), f"{node.name}.rows", np.asarray(pads, np.int64))
    added = add_initializer(graph_of(node), f"{node.name}.tokens", constant)
    padded = insert_before(node, "Pad", [data, around], like=node.outputs[0])
    _log.debug("%s: %d rows in front and %d behind are one addition", node_label(node), begin, end)
    replace_node(last, "Add", [padded, added])
    return True


def _sizes(value: ir.Value | None) -> tuple[int, int, int] | None:
    """(1, a, b) of a sequence [batch, a, b] with known a and b; None for anything else."""
    found = dims(value)
    if found is None or len(found) != _RANK:
        return None
    _, first, second = found
    return (1, first, second) if isinstance(first, int) and isinstance(second, int) else None


def _with(sizes: tuple[int, int, int], axis: int, size: int) -> list[int]:
    return [size if index == axis else other for index, other in enumerate(sizes)]


def _token(value: ir.Value | None, joined: ir.Value) -> Array | None:
    """The rows [1, a, b] that are the same for every image; None for what is computed from the image.

    Either a constant repeated for the batch, or one that holds the rows of a fixed batch already.
    """
    repeated = producer_of(value, "Expand")
    own = constant_value(value if repeated is None else input_at(repeated, 0))
    sizes = _sizes(value)
    if own is None or own.dtype != np.float32 or sizes is None:
        return None
    if (dims(value) or (None,))[0] != (dims(joined) or (None,))[0]:
        return None
    own = own.reshape((1,) * max(0, _RANK - own.ndim) + own.shape)
    if own.ndim != _RANK or not (own == own[:1]).all():
        return None
    return np.broadcast_to(own[:1], sizes)


def _offset_in_front(data: ir.Value, node: ir.Node, axis: int) -> tuple[ir.Value, Array, tuple[int, int]]:
    """(x, c, (begin, end)) with data = Pad(x, begin, end) + c, where the Concat alone reads the sum; else data itself.

    So tokens that come one after the other, and positions that only the patches have, stay one addition.
    """
    unchanged = data, np.zeros((1, 1, 1), np.float32), (0, 0)
    total = producer_of(data, "Add")
    operand = None if total is None else constant_operand(total)
    sizes = _sizes(data)
    if operand is None or sizes is None or sole_consumer(data) is not node:
        return unchanged
    source, constant = operand
    # A bias is a part of its matrix product.
    if producer_of(source, "MatMul") is not None and constant.ndim < 2:
        return unchanged
    added = _for_each_image(constant, sizes)
    if added is None or _sizes(source) != sizes:
        return unchanged
    pad = producer_of(source, "Pad")
    rows = None if pad is None or sole_consumer(source) is not total else _rows(pad, axis)
    if pad is None or rows is None or pad.inputs[0] is None:
        return source, added, (0, 0)
    return pad.inputs[0], added, rows


def _rows(pad: ir.Node, axis: int) -> tuple[int, int] | None:
    """How many zeros a Pad puts in front and behind, along that axis alone; None for any other Pad."""
    pads = ints_constant(input_at(pad, 1))
    fill = input_at(pad, 2)
    if attribute_string(pad, "mode", "constant") != "constant" or pads is None or len(pads) != 2 * _RANK:
        return None
    if input_at(pad, 3) is not None or (fill is not None and scalar_constant(fill) != 0.0):
        return None
    others = [size for index, size in enumerate(pads) if index % _RANK != axis]
    return None if any(others) or min(pads) < 0 else (pads[axis], pads[_RANK + axis])


def _offset_behind(node: ir.Node) -> tuple[ir.Node, Array]:
    """(the Add, c) where an Add of a constant alone reads the Concat; (the Concat, 0) otherwise."""
    joined = node.outputs[0]
    sizes, reader = _sizes(joined), sole_consumer(joined)
    operand = None if reader is None or reader.op_type != "Add" or reader.domain != "" else constant_operand(reader)
    added = None if operand is None or sizes is None else _for_each_image(operand[1], sizes)
    if reader is None or added is None or dims(reader.outputs[0]) != dims(joined):
        return node, np.zeros((1, 1, 1), np.float32)
    return reader, added


def _for_each_image(constant: Array, sizes: tuple[int, int, int]) -> Array | None:
    """The constant as [1, a, b] where it is the same for each image; None where it isn't, or has another type."""
    rows = constant[:1] if constant.ndim == _RANK else constant
    if constant.dtype != np.float32 or constant.ndim > _RANK or not (constant == rows).all():
        return None
    try:
        return np.broadcast_to(rows, sizes)
    except ValueError:
        return None
