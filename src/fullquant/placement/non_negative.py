"""Which tensors cannot be below 0, whatever the image and the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import constant_value, input_at

# Their values are in [0, inf) by definition.
_ALWAYS = frozenset({"Relu", "HardSigmoid", "Sigmoid", "Softmax", "Exp", "Sqrt", "Abs"})
# Not below 0 where all their operands are not: copies, averages, maxima, sums, products.
_KEEPS = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "GlobalMaxPool", "ReduceMax",
    "ReduceMin",
    "Identity", "Split", "Gather", "Expand", "Tile", "Concat", "DepthToSpace", "GlobalAveragePool", "AveragePool",
    "ReduceMean", "ReduceSum", "Add", "Mul", "Div", "Max", "Min", "HardSwish",
})  # fmt: skip


def non_negative_tensors(graph: ir.Graph) -> set[str]:
    """Names of the computed tensors that the operators alone keep at 0 or above. The input image is not one."""
    found: set[str] = set()
    for node in graph:
        if _is_non_negative(node, found):
            found.update(str(value.name) for value in node.outputs)
    return found


def _is_non_negative(node: ir.Node, found: set[str]) -> bool:
    if node.op_type in _ALWAYS:
        return True
    bounds = clip_bounds(node)
    if bounds is not None:
        source, low, high = bounds
        return low >= 0 or (high >= 0 and str(source.name) in found)
    if node.op_type in _KEEPS:
        return all(_operand(value, found) for value in node.inputs if value is not None and _is_real(value))
    if node.op_type == "Pad":  # by 0, or by a constant that is not below 0
        filling = constant_value(input_at(node, 2))
        return str(node.inputs[0].name) in found and (filling is None or bool(np.all(filling >= 0)))  # type: ignore[union-attr]
    return False


def _is_real(value: ir.Value) -> bool:
    """Not a shape, an index or an axis."""
    return value.dtype is None or value.dtype == ir.DataType.FLOAT


def _operand(value: ir.Value, found: set[str]) -> bool:
    array = constant_value(value)
    return str(value.name) in found if array is None else bool(np.all(array >= 0))
