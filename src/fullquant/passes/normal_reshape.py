"""Reshapes become static, also where the batch size isn't known, and get one form."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    data_input,
    dims,
    graph_of,
    input_at,
    ints_constant,
    node_label,
    replace_node,
)
from fullquant.graph.shape_values import Size, shape_elements

_log = logging.getLogger(__name__)


def normal_reshape(model: ir.Model) -> int:
    """Makes the targets of Reshape constant and turns every `[N, C, H, W] -> [N, C*H*W]` into Flatten(axis=1).

    A target computed from the input's shape (Shape -> Slice -> Concat -> Reshape) is followed symbolically: a size
    equal to the data's at the same place becomes 0 (copied), one that stays unknown becomes -1. A fixed batch size in
    front of sizes that hold all of one image's elements becomes 0 too, so that the graph runs with any batch. Squeeze
    of [N, C, 1, 1] is a Flatten as well.
    """
    count = 0
    for node in list(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "Reshape":
            count += _reshape(node)
        elif node.op_type == "Squeeze":
            count += _squeeze(node)
        elif node.op_type == "Flatten":
            count += _flatten(node)
    return count


def _reshape(node: ir.Node) -> bool:
    value = input_at(node, 1)
    sizes = shape_elements(value)
    data = dims(node.inputs[0])
    if sizes is None or value is None:
        _log.debug("%s has a computed target of unknown length; kept", node_label(node))
        return False
    if attribute_int(node, "allowzero", 0) and 0 in sizes:
        _log.debug("%s makes an empty tensor; kept", node_label(node))
        return False
    target = _static_target(sizes, data)
    if target is None:
        _log.debug("%s has more than one size that is only known at run time; kept", node_label(node))
        return False
    if data is not None and _is_flatten(target, data):
        replace_node(node, "Flatten", [data_input(node)], {"axis": 1})
        return True
    if ints_constant(value) == target and not node.attributes:
        return False
    constant = add_initializer(graph_of(node), f"{node.name}.shape", np.asarray(target, dtype=np.int64))
    replace_node(node, "Reshape", [data_input(node), constant])
    return True


def _squeeze(node: ir.Node) -> bool:
    data = dims(node.inputs[0])
    axes = ints_constant(input_at(node, 1))
    if data is None or len(data) < 3 or axes is None or any(size != 1 for size in data[2:]):
        return False
    if sorted(axis % len(data) for axis in axes) != list(range(2, len(data))):
        return False
    replace_node(node, "Flatten", [data_input(node)], {"axis": 1})
    return True


def _flatten(node: ir.Node) -> bool:
    """Flatten's axis may be negative; 1 is the normal form where it means the same."""
    data, axis = dims(node.inputs[0]), attribute_int(node, "axis", 1)
    if data is None or axis not in (1, 1 - len(data)) or (axis == 1 and "axis" in node.attributes):
        return False
    replace_node(node, "Flatten", [data_input(node)], {"axis": 1})
    return True


def _static_target(sizes: list[Size], data: tuple[Size, ...] | None) -> list[int] | None:
    """The target with 0 for copied sizes and -1 for at most one unknown size; None if more are unknown."""
    target = []
    for index, size in enumerate(sizes):
        same = data is not None and index < len(data) and isinstance(size, str) and data[index] == size
        target.append(size if isinstance(size, int) else 0 if same else -1)
    if target and data and isinstance(target[0], int) and target[0] != 0 and _rest_is_one_image(target, data):
        target[0] = 0
    return target if target.count(-1) <= 1 else None


def _rest_is_one_image(target: list[int], data: tuple[Size, ...]) -> bool:
    """Whether target[1:] holds as many elements as data[1:], so that target[0] can only be the data's first size.

    Zeros copy sizes; a -1 behind the first place takes what is left, so with a -1 both first sizes must be equal.
    """
    if isinstance(data[0], int):
        return False
    if -1 in target[1:]:
        return False
    rest = [data[index] if size == 0 and index < len(data) else size for index, size in enumerate(target)][1:]
    known = [size for size in (*rest, *data[1:]) if isinstance(size, int)]
    if len(known) != len(rest) + len(data) - 1:
        return False
    return int(np.prod([size for size in rest if isinstance(size, int)])) == int(np.prod(known[len(rest) :]))


def _is_flatten(target: list[int], data: tuple[Size, ...]) -> bool:
    """Whether a static target means [first size, all the others]."""
    if len(target) != 2 or len(data) < 2 or not (target[0] == 0 or target[0] == data[0]):
        return False
    if target[1] == 0:
        return len(data) == 2
    known = [size for size in data[1:] if isinstance(size, int)]
    return target[1] == -1 or (len(known) == len(data) - 1 and target[1] == int(np.prod(known)))
