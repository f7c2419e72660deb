"""Averages over the whole image become GlobalAveragePool."""

from __future__ import annotations

import logging

import onnx_ir as ir

from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    data_input,
    dims,
    input_at,
    insert_before,
    ints_constant,
    node_label,
    replace_node,
)

_log = logging.getLogger(__name__)


def global_pooling(model: ir.Model) -> int:
    """ReduceMean over axes [2, 3] of an NCHW tensor, and AveragePool of full size -> GlobalAveragePool.

    Without keepdims a Flatten follows: [N, C, 1, 1] -> [N, C].
    """
    count = 0
    for node in list(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "ReduceMean":
            count += _reduce_mean(node)
        elif node.op_type == "AveragePool":
            count += _average_pool(node)
    return count


def _reduce_mean(node: ir.Node) -> bool:
    sizes = dims(node.inputs[0])
    if input_at(node, 1) is not None:
        axes = ints_constant(node.inputs[1])
    else:
        axes = attribute_ints(node, "axes", []) or None
    if sizes is None or len(sizes) != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        _log.debug("%s isn't the mean over height and width of an NCHW tensor; kept", node_label(node))
        return False
    if attribute_int(node, "keepdims", 1):
        replace_node(node, "GlobalAveragePool", [data_input(node)])
        return True
    source = data_input(node)
    pooled = insert_before(node, "GlobalAveragePool", [source], name=f"{node.name}_pool", output=f"{node.name}.pooled")
    pooled.shape, pooled.type = ir.Shape([*sizes[:2], 1, 1]), source.type
    replace_node(node, "Flatten", [pooled], {"axis": 1})
    return True


def _average_pool(node: ir.Node) -> bool:
    sizes, kernel = dims(node.inputs[0]), attribute_ints(node, "kernel_shape", [])
    if sizes is None or len(sizes) != 4 or list(sizes[2:]) != kernel or any(attribute_ints(node, "pads", [0])):
        return False
    replace_node(node, "GlobalAveragePool", [data_input(node)])
    return True
