"""x / max(|x|, epsilon) along an axis, in the parts that PyTorch's exporters write it in."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    data_input,
    dims,
    input_at,
    ints_constant,
    producer_of,
    replace_node,
)

_SMALL = 1e-4


def fuse_lp_normalization(model: ir.Model) -> int:
    """x / [Expand](clip(ReduceL2(x), at least epsilon)) -> LpNormalization of order 2; returns how many.

    The norm itself is on no useful int8 grid: a small one becomes 0, and the quotient no number. A vector of zeros
    gives zeros, as it does with the epsilon.
    """
    return sum(_fuse(node) for node in list(model.graph) if node.op_type == "Div" and node.domain == "")


def _fuse(node: ir.Node) -> bool:
    x, divisor = node.inputs[0], node.inputs[1]
    if node.graph is None or x is None or divisor is None:
        return False
    expand = producer_of(divisor, "Expand")
    if expand is not None:
        if dims(expand.outputs[0]) != dims(x) or dims(x) is None:
            return False
        divisor = data_input(expand)
    clip = divisor.producer()
    bounds = None if clip is None else clip_bounds(clip)
    if bounds is not None:
        if not 0 < bounds[1] <= _SMALL or bounds[2] < 1e4:
            return False
        divisor = bounds[0]
    norm = producer_of(divisor, "ReduceL2")
    if norm is None or norm.inputs[0] is not x or not attribute_int(norm, "keepdims", 1):
        return False
    axes = ints_constant(input_at(norm, 1)) if len(norm.inputs) > 1 else attribute_ints(norm, "axes", [])
    if axes is None or len(axes) != 1:
        return False
    replace_node(node, "LpNormalization", [x], {"axis": axes[0], "p": 2})
    return True
