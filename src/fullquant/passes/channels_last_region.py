"""The parts of a graph that compute on NHWC tensors without caring for the order of axes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    constant_value,
    dims,
    input_at,
    ints_constant,
    node_label,
    rank,
)
from fullquant.graph.layout import TO_FIRST, TO_LAST

_log = logging.getLogger(__name__)

#: Computed element by element, so the order of axes does not matter to them.
_ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "LeakyRelu", "Elu", "PRelu", "Gelu", "Mish", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Softplus", "Cast", "Identity",
    "Dropout",
})  # fmt: skip


@dataclass
class Region:
    """Nodes that compute on NHWC tensors, and all their borders.

    starts: tensors in NHWC that have an NCHW form: outputs of transposes to NHWC, vectors [N, C] that were given the
        form [N, 1, 1, C], and the seed. ends: transposes back, means over the image, images of one pixel made vectors.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    starts: list[ir.Value] = field(default_factory=list)
    ends: list[ir.Node] = field(default_factory=list)


def find_region(seed: ir.Value) -> Region | None:
    """Everything that is joined to `seed` by operators without an order of axes, forwards and backwards.

    A sum of two branches belongs to both. None where anything on the border needs its axes in the order that they have.
    """
    found, pending, seen = Region(), [seed], {seed}

    def take(node: ir.Node) -> None:
        if node not in found.nodes:
            found.nodes.append(node)
            fresh = [value for value in (*_tensors(node), *_used(node.outputs)) if value not in seen]
            pending.extend(fresh)
            seen.update(fresh)

    while pending:
        value = pending.pop()
        producer, readers = value.producer(), [node for node, _ in value.uses()]
        if value.is_graph_output() or not readers:
            return None
        if value is seed or is_transpose(producer, TO_LAST) or is_pixel(producer):
            found.starts.append(value)
        elif producer is None or (producer not in found.nodes and not _gives_images(producer)):
            return None
        else:
            take(producer)
        for node in readers:
            if is_transpose(node, TO_FIRST) or is_image_mean(node) or _is_vector(node):
                if node not in found.ends:
                    found.ends.append(node)
            elif _has_no_order(node) and not node.outputs[0].is_graph_output():
                take(node)
            else:
                _log.debug("%s computes on NHWC and needs it; the transposes are kept", node_label(node))
                return None
    return found if found.ends else None


def is_transpose(node: ir.Node | None, order: tuple[int, ...]) -> bool:
    """Whether the node is a Transpose into this order of axes."""
    return (
        node is not None
        and node.op_type == "Transpose"
        and node.domain == ""
        and tuple(attribute_ints(node, "perm", [])) == order
    )


def is_image_mean(node: ir.Node) -> bool:
    """Whether the node is a mean or maximum over height and width of NHWC."""
    if node.op_type not in ("ReduceMean", "ReduceMax") or node.domain != "":
        return False
    return sorted(axis % 4 for axis in axes(node)) == [1, 2]


def is_pixel(node: ir.Node | None) -> bool:
    """Whether [N, C] becomes [N, 1, 1, C], as in a squeeze-and-excitation branch of dense layers."""
    if node is None or node.domain != "" or rank(node.inputs[0]) != 2:
        return False
    if node.op_type == "Unsqueeze":
        return sorted(axis % 4 for axis in axes(node)) == [1, 2]
    sizes, channels = dims(node.outputs[0]), dims(node.inputs[0])
    if node.op_type != "Reshape" or sizes is None or channels is None or len(sizes) != 4:
        return False
    return list(sizes[1:3]) == [1, 1] and isinstance(channels[1], int) and sizes[3] == channels[1]


def axes(node: ir.Node) -> list[int]:
    """The axes of a reduction, Squeeze or Unsqueeze, as input or as attribute."""
    return (ints_constant(input_at(node, 1)) or []) if len(node.inputs) > 1 else attribute_ints(node, "axes", [])


def _tensors(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None and constant_value(value) is None)


def _used(values: Iterable[ir.Value]) -> Iterator[ir.Value]:
    """The mask of a Dropout has no reader."""
    yield from (value for value in values if value.name and list(value.uses()))


def _has_no_order(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type == "Concat":
        constants = [constant_value(value) for value in node.inputs]
        return all(constant is None or constant.ndim == 4 for constant in constants)
    if node.op_type == "Pad":
        pads = ints_constant(input_at(node, 1))
        return input_at(node, 3) is None and pads is not None and len(pads) == 8
    constants = [constant_value(value) for value in node.inputs]
    return node.op_type in _ELEMENTWISE and all(c is None or c.ndim <= 4 for c in constants)


def _gives_images(node: ir.Node) -> bool:
    """Whether the region may reach backwards over the node: what it gives has four axes."""
    return _has_no_order(node) and rank(node.outputs[0]) == 4


def _is_vector(node: ir.Node) -> bool:
    """Whether [N, 1, 1, C] becomes [N, C], for which the order of axes is the same as from [N, C, 1, 1]."""
    if node.op_type == "Squeeze" and node.domain == "":
        return sorted(axis % 4 for axis in axes(node)) == [1, 2]
    sizes = dims(node.inputs[0])
    if sizes is None or list(sizes[1:3]) != [1, 1] or node.domain != "":
        return False
    target = ints_constant(input_at(node, 1)) if node.op_type == "Reshape" else None
    flat = node.op_type == "Flatten" and attribute_int(node, "axis", 1) == 1
    return flat or (target is not None and len(target) == 2 and target in ([0, sizes[3]], [-1, sizes[3]], [0, -1]))
