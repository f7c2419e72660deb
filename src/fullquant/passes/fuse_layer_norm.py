"""LayerNormalization is recognised where it is written in parts, as exporters do before opset 17."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    OP_TYPE,
    add_initializer,
    attribute_int,
    attribute_ints,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    producer_of,
    replace_node,
)
from fullquant.passes.polynomial import equals, polynomial

_TOLERANCE = 1e-6


def fuse_layer_norm(model: ir.Model) -> int:
    """d / sqrt(mean(d^2) + epsilon), d = x - mean(x), over the last axes -> LayerNormalization(x) with scale 1.

    Over axis 1 of an NCHW tensor (the layer normalization of convolutional networks) two Transposes are put around it.
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
    """LayerNormalization followed by a product with, then a sum with, constants over its axes takes them in."""
    count = 0
    for node in list(model.graph):
        if node.graph is not None and node.op_type == "LayerNormalization" and node.domain == "":
            count += _take(node)
    return count


def _take(node: ir.Node) -> bool:
    uses = list(node.outputs[0].uses())
    scale, sizes = node.inputs[1], dims(node.inputs[0])
    if len(uses) != 1 or node.outputs[0].is_graph_output() or scale is None or scale.const_value is None or not sizes:
        return False
    following = uses[0].node
    bias_value = input_at(node, 2)
    constant = following.inputs[1] if len(following.inputs) == 2 else None
    if following.op_type not in ("Mul", "Add") or following.domain != "" or following.inputs[0] is not node.outputs[0]:
        return False
    if constant is None or constant.const_value is None or (bias_value is not None and bias_value.const_value is None):
        return False
    inner = scale.const_value.numpy().shape
    array = constant.const_value.numpy()
    if array.ndim > len(sizes) or any(size != 1 for size in array.shape[: max(0, array.ndim - len(inner))]):
        return False
    try:
        array = np.broadcast_to(array.reshape(array.shape[max(0, array.ndim - len(inner)) :]), inner)
    except ValueError:
        return False
    gain = scale.const_value.numpy().astype(np.float64)
    bias = np.zeros(inner) if bias_value is None else bias_value.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    if following.op_type == "Mul":
        gain, bias = gain * array, bias * array
    else:
        bias = bias + array
    graph = graph_of(node)
    inputs = [node.inputs[0], add_initializer(graph, f"{node.name}.gain", gain.astype(np.float32))]
    if np.any(bias != 0):
        inputs.append(add_initializer(graph, f"{node.name}.bias", bias.astype(np.float32)))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    replace_node(node, "LayerNormalization", inputs, attributes, result=following.outputs[0])
    return True


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
