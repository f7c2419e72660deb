"""Instance and group normalization become LayerNormalization, which every later stage knows."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    OP_TYPE,
    add_initializer,
    attribute_float,
    attribute_int,
    constant_value,
    data_input,
    dims,
    graph_of,
    insert_before,
    node_label,
    replace_node,
)

_log = logging.getLogger(__name__)


def normal_normalization(model: ir.Model) -> int:
    """InstanceNormalization(x; s, b) -> s * LayerNormalization(x over axes 2..) + b, s and b per channel.

    GroupNormalization is the same on [N, groups, channels / groups, ...], which two Reshapes make. PyTorch's exporter
    writes a group normalization as InstanceNormalization of a reshaped tensor with s = 1 and b = 0.
    """
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("InstanceNormalization", "GroupNormalization"):
            count += _rewrite(node)
    return count


def _rewrite(node: ir.Node) -> bool:
    sizes = dims(node.inputs[0])
    scale, bias = (constant_value(value) for value in node.inputs[1:3])
    if sizes is None or len(sizes) < 3 or scale is None or bias is None:
        _log.debug("%s has computed parameters or an unknown shape; kept", node_label(node))
        return False
    known = [size for size in sizes[1:] if isinstance(size, int)]
    if len(known) != len(sizes) - 1:
        return False
    graph, source = graph_of(node), data_input(node)
    group = node.op_type == "GroupNormalization"
    groups = attribute_int(node, "num_groups", 1) if group else known[0]
    inner = [known[0] // groups, *known[1:]] if group else known[1:]
    if group:
        # Opset 18 has one number per group, 21 one per channel.
        scale, bias = (np.repeat(v, known[0] // v.size) for v in (scale, bias))
        target = add_initializer(graph, f"{node.name}.groups", np.asarray([0, groups, int(np.prod(inner))], np.int64))
        source = insert_before(node, "Reshape", [source, target], output=f"{node.name}.grouped")
        source.shape, source.type = ir.Shape([sizes[0], groups, int(np.prod(inner))]), node.outputs[0].type
        inner = [int(np.prod(inner))]
    ones = add_initializer(graph, f"{node.name}.ones", np.ones(inner, np.float32))
    attributes = {"axis": 2, "epsilon": attribute_float(node, "epsilon", 1e-5)}
    value = insert_before(node, "LayerNormalization", [source, ones], attributes, like=source)
    if group:
        target = add_initializer(graph, f"{node.name}.shape", np.asarray([0, *known], np.int64))
        value = insert_before(node, "Reshape", [value, target], output=f"{node.name}.ungrouped", like=node.outputs[0])
    shape = (-1, *[1] * (len(sizes) - 2))
    factor, offset = (np.asarray(v, np.float32).reshape(shape) for v in (scale, bias))
    product = insert_before(
        node, "Mul", [value, add_initializer(graph, f"{node.name}.scale", factor)], like=node.outputs[0]
    )
    added = add_initializer(graph, f"{node.name}.bias", offset)
    replace_node(node, "Add", [product, added]).metadata_props.pop(OP_TYPE, None)
    return True
