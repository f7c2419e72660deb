"""Constant nodes become initializers; nodes that read constants only are computed now."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fullquant.graph.edit import (
    Array,
    add_named,
    attribute_int,
    constant_value,
    dims,
    graph_of,
    node_label,
    prune,
    replace_uses,
    value_name,
)

_log = logging.getLogger(__name__)

#: Never computed here: they draw random numbers, or they are quantization, which later stages must see.
_KEPT = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
    | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
)
#: What numbers in their inputs make large.
_GROWING = frozenset(
    {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "Upsample", "CenterCropPad"}
)
#: A constant beyond this many elements is not worth the file that it would make.
_MAX_ELEMENTS = 1 << 26


def constants_to_initializers(model: ir.Model) -> int:
    """Every Constant node becomes an initializer of the same name."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "Constant" or node.domain != "":
            continue
        array = constant_value(node.outputs[0])
        if array is None:
            _log.debug("%s holds strings or a sparse tensor; kept", node_label(node))
        else:
            count += _become_initializer(node, [array])
    return count


def fold_constants(model: ir.Model) -> int:
    """Computes every node whose inputs are all constant, and Shape and Size of values with a known shape."""
    count = 0
    for node in list(model.graph):
        if node.domain != "" or node.op_type in _KEPT or node.op_type == "Constant":
            continue
        results = _shape_result(node) or _evaluate(node, model.opset_imports[""])
        if results is not None:
            count += _become_initializer(node, results)
    return count


def _shape_result(node: ir.Node) -> list[Array] | None:
    """The value of Shape or Size where the sizes it asks for are known."""
    if node.op_type not in ("Shape", "Size"):
        return None
    sizes = dims(node.inputs[0])
    if sizes is None:
        return None
    if node.op_type == "Shape":
        sizes = sizes[attribute_int(node, "start", 0) : attribute_int(node, "end", len(sizes))]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        return None
    return [np.asarray(known if node.op_type == "Shape" else np.prod(known), dtype=np.int64)]


def _evaluate(node: ir.Node, opset: int) -> list[Array] | None:
    """The outputs of a node with constant inputs, by ONNX's reference implementation."""
    inputs = [value for value in node.inputs if value is not None]
    arrays = [constant_value(value) for value in inputs]
    if not inputs or any(array is None for array in arrays):
        return None
    if not _is_bounded(node):
        _log.debug("%s may become a constant of more than %d elements; kept", node_label(node), _MAX_ELEMENTS)
        return None
    try:
        evaluator = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset})
        feeds = {str(value.name): array for value, array in zip(inputs, arrays, strict=True)}
        results = [np.asarray(result) for result in evaluator.run(None, feeds)]
    except Exception as error:  # the reference implementation raises whatever its NumPy code raises
        _log.debug("%s cannot be computed from its constants: %s", node_label(node), error)
        return None
    if sum(result.size for result in results) > _MAX_ELEMENTS:
        _log.debug("%s would become a constant of more than %d elements; kept", node_label(node), _MAX_ELEMENTS)
        return None
    return [_with_declared_dtype(result, value) for result, value in zip(results, node.outputs, strict=True)]


def _is_bounded(node: ir.Node) -> bool:
    """Whether the outputs are known to be of a size that can be computed: a file may claim any shape."""
    for value in node.outputs:
        sizes = dims(value)
        if sizes is None or any(not isinstance(size, int) for size in sizes):
            if node.op_type in _GROWING:
                return False
        elif math.prod(size for size in sizes if isinstance(size, int)) > _MAX_ELEMENTS:
            return False
    return True


def _with_declared_dtype(array: Array, value: ir.Value) -> Array:
    """The reference implementation now and then computes in float64 what the graph declares float32."""
    return array if value.dtype is None else array.astype(value.dtype.numpy())


def _become_initializer(node: ir.Node, arrays: list[Array]) -> bool:
    """Replaces the node's outputs by initializers of the same names; False where one is a graph output."""
    graph = graph_of(node)
    if any(value.is_graph_output() for value in node.outputs):
        _log.debug("%s is a constant graph output; kept", node_label(node))
        return False
    for value, array in zip(node.outputs, arrays, strict=True):
        if not list(value.uses()):
            continue
        name = value_name(value)
        value.name = None
        replace_uses(value, add_named(graph, name, array))
    prune(node)
    return True
