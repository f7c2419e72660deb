"""LayerNormalization is recognised where it is written in parts, as exporters do before opset 17."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    OP_TYPE,
    Array,
    add_initializer,
    attribute_int,
    attribute_ints,
    constant_operand,
    constant_value,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    producer_of,
    replace_node,
    sole_consumer,
)
from fullquant.passes.polynomial import equals, polynomial

_TOLERANCE = 1e-6


def fuse_layer_norm(model: ir.Model) -> int:
    """d / sqrt(mean(d^2) + epsilon), d = x - mean(x), over the last axes -> LayerNormalization(x) with scale 1.

    Over axis 1 of an NCHW tensor (the layer normalization of convolutional networks) two Transposes are put around it.
    The square of d is on no useful int8 grid: its range is that of x squared, and its mean adds to a small epsilon.
    The square may be d * d, Pow(d, 2) or come from a second, equal subtraction; the division a product with 1 / sqrt.
    Scale and bias behind it stay where they are; fold_layer_norm_parameters takes them in.
    """
    count = 0
    for node in list(model.graph):
        match = None if node.graph is None or node.domain != "" else _match(node)
        if match is None:
            continue
        source, axes, epsilon = match
        count += _fuse(node, source, axes, epsilon)
    return count


def fold_layer_norm_parameters(model: ir.Model) -> int:
    """LayerNormalization followed by a product with, then a sum with, constants over its axes takes them in.

    A Transpose may stand between, as in channel-first maps: the constants then lie along the axis that it makes of the
    last one.
    """
    count = 0
    for node in list(model.graph):
        if node.graph is not None and node.op_type == "LayerNormalization" and node.domain == "":
            count += _take(node)
    return count


def _take(node: ir.Node) -> bool:
    gain, bias = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    sizes = dims(node.inputs[0])
    if gain is None or not sizes or (bias is None and input_at(node, 2) is not None):
        return False
    moved = _only_reader(node, "Transpose")
    following = _only_reader(moved or node, "Mul", "Add")
    operand = None if following is None else constant_operand(following)
    if following is None or operand is None or operand[0] is not (moved or node).outputs[0]:
        return False
    array = operand[1] if moved is None else _along_last(operand[1], attribute_ints(moved, "perm", []))
    inner = None if array is None else _over(array, gain.shape, len(sizes))
    if inner is None:
        return False
    offset = np.zeros(gain.shape) if bias is None else bias.astype(np.float64)
    if following.op_type == "Mul":
        gain, offset = gain.astype(np.float64) * inner, offset * inner
    else:
        offset = offset + inner
    graph = graph_of(node)
    inputs = [node.inputs[0], add_initializer(graph, f"{node.name}.gain", gain.astype(np.float32))]
    if np.any(offset != 0):
        inputs.append(add_initializer(graph, f"{node.name}.bias", offset.astype(np.float32)))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if moved is None:
        replace_node(node, "LayerNormalization", inputs, attributes, result=following.outputs[0])
        return True
    value = insert_before(moved, "LayerNormalization", inputs, attributes, like=node.outputs[0])
    perm = attribute_ints(moved, "perm", [])
    replace_node(following, "Transpose", [value], {"perm": perm}).metadata_props.pop(OP_TYPE, None)
    return True


def _only_reader(node: ir.Node, *op_types: str) -> ir.Node | None:
    reader = sole_consumer(node.outputs[0])
    return reader if reader is not None and reader.op_type in op_types and reader.domain == "" else None


def _along_last(array: Array, perm: Sequence[int]) -> Array | None:
    """A constant that has one size other than 1 behind a Transpose, where that axis was the last, as a vector."""
    if not perm or array.ndim > len(perm):
        return None
    sizes = (1,) * (len(perm) - array.ndim) + array.shape
    place = list(perm).index(len(perm) - 1)
    others = [size for axis, size in enumerate(sizes) if axis != place]
    return array.reshape(-1) if all(size == 1 for size in others) else None


def _over(array: Array, inner: tuple[int, ...], rank: int) -> Array | None:
    """A constant operand of a tensor with `rank` axes as numbers for the last ones, `inner`; None where it has more."""
    outer = max(0, array.ndim - len(inner))
    if array.ndim > rank or any(size != 1 for size in array.shape[:outer]):
        return None
    try:
        return np.broadcast_to(array.reshape(array.shape[outer:]), inner)
    except ValueError:
        return None


def _fuse(node: ir.Node, source: ir.Value, axes: list[int], epsilon: float) -> bool:
    sizes = dims(source)
    if sizes is None:
        return False
    rank, last = len(sizes), list(range(len(sizes) - len(axes), len(sizes)))
    channel_first = axes == [1] and rank == 4
    if not (axes == last or channel_first) or not all(isinstance(sizes[axis], int) for axis in axes):
        return False
    graph = graph_of(node)
    ones = np.ones([int(sizes[axis] or 0) for axis in axes], np.float32)
    scale = add_initializer(graph, f"{node.name}.scale", ones)
    if not channel_first:
        replace_node(
            node, "LayerNormalization", [source, scale], {"axis": -len(axes), "epsilon": epsilon}
        ).metadata_props.pop(OP_TYPE, None)
        return True
    order, back = [0, 2, 3, 1], [0, 3, 1, 2]
    moved = insert_before(node, "Transpose", [source], {"perm": order})
    moved.type, moved.shape = source.type, ir.Shape([sizes[axis] for axis in order])
    value = insert_before(node, "LayerNormalization", [moved, scale], {"axis": -1, "epsilon": epsilon}, like=moved)
    replace_node(node, "Transpose", [value], {"perm": back}).metadata_props.pop(OP_TYPE, None)
    return True


def _match(node: ir.Node) -> tuple[ir.Value, list[int], float] | None:
    """(x, axes, epsilon) where the node is the quotient, or the product with a reciprocal, of a layer normalization."""
    if node.op_type == "Div":
        candidates = [(node.inputs[0], node.inputs[1])]
    elif node.op_type == "Mul":
        candidates = []
        for gate, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            reciprocal = producer_of(gate, "Reciprocal", "Div")
            if reciprocal is None:
                continue
            if reciprocal.op_type == "Reciprocal" or _is_one(reciprocal.inputs[0], reciprocal.inputs[1]):
                candidates.append((other, reciprocal.inputs[-1]))
    else:
        return None
    for deviation, root in candidates:
        found = _centred(deviation)
        spread = producer_of(root, "Sqrt")
        if found is None or spread is None:
            continue
        epsilon = _variance(spread.inputs[0], *found)
        if epsilon is not None:
            return *found, epsilon
    return None


def _is_one(value: ir.Value | None, atom: ir.Value | None) -> bool:
    return atom is not None and equals(polynomial(value, (atom,)), {(0,): 1.0}, _TOLERANCE)


def _centred(value: ir.Value | None) -> tuple[ir.Value, list[int]] | None:
    """(x, axes) of x - mean(x), the axes ascending and not negative."""
    node = producer_of(value, "Sub")
    if node is None:
        return None
    source, mean = node.inputs
    axes = _mean_axes(mean)
    reduce = producer_of(mean, "ReduceMean")
    if source is None or axes is None or reduce is None or reduce.inputs[0] is not source:
        return None
    return source, axes


def _mean_axes(value: ir.Value | None) -> list[int] | None:
    node = producer_of(value, "ReduceMean")
    sizes = None if node is None else dims(node.inputs[0])
    if node is None or sizes is None or not attribute_int(node, "keepdims", 1):
        return None
    given = ints_constant(node.inputs[1]) if input_at(node, 1) is not None else attribute_ints(node, "axes", [])
    return sorted(axis % len(sizes) for axis in given) if given else None


def _variance(value: ir.Value | None, source: ir.Value, axes: list[int]) -> float | None:
    """epsilon where value = mean((x - mean(x))^2) + epsilon over the same axes."""
    add = producer_of(value, "Add")
    for operand in () if add is None else add.inputs:
        mean = producer_of(operand, "ReduceMean")
        if operand is None or mean is None or _mean_axes(operand) != axes:
            continue
        sums = polynomial(value, (operand,))
        if sums is None or set(sums) != {(1,), (0,)} or sums[(1,)] != 1.0 or sums[(0,)] <= 0:
            continue
        square = producer_of(mean.inputs[0], "Pow", "Mul")
        inner = None if square is None else square.inputs[0]
        if inner is None or _centred(inner) != (source, axes):
            continue
        if equals(polynomial(mean.inputs[0], (inner,)), {(2,): 1.0}, _TOLERANCE):
            return sums[(0,)]
    return None
