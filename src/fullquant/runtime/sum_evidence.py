"""Whether a runtime rounds half-way sums of two tensors otherwise than its file says (`numerics.sums`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import constant_value, value_name
from fullquant.numerics import affine
from fullquant.numerics.qparams import IntArray
from fullquant.readers.quantized import QuantizedGraph

_CLOSE = 1e-3


@dataclass(frozen=True)
class SumEvidence:
    """checked: how many elements of a sum differ by one step. half_way: share of them half-way between two integers."""

    checked: int
    half_way: float


def operands(graph: QuantizedGraph, tensor: str) -> tuple[str, str] | None:
    """The two activations whose sum or difference a tensor is, behind a clamp or not; None for anything else."""
    node = _sum_of(graph, tensor)
    names = [] if node is None else [value_name(v) for v in node.inputs if v is not None and constant_value(v) is None]
    decisions = [graph.placement.get(name) for name in names]
    if len(names) != 2 or any(d is None or d.spec is None or d.fused for d in decisions):
        return None
    return names[0], names[1]


def sum_evidence(
    graph: QuantizedGraph, tensor: str, first: IntArray, second: IntArray, actual: IntArray, expected: IntArray
) -> SumEvidence | None:
    """first, second: the integers that the runtime gave the operator. None where no element is one step elsewhere."""
    node, names = _sum_of(graph, tensor), operands(graph, tensor)
    elements = np.abs(actual - expected) == 1
    if node is None or names is None or not elements.any():
        return None
    a, b = (
        affine.dequantize(q, graph.qparams[graph.placement.scale_owner(name)]).astype(np.float64)
        for q, name in zip((first, second), names, strict=True)
    )
    total = a + b if node.op_type == "Add" else a - b
    steps = np.broadcast_to(total, actual.shape)[elements] / float(
        graph.qparams[graph.placement.scale_owner(tensor)].scale
    )
    return SumEvidence(int(elements.sum()), float(np.mean(np.abs(steps - np.floor(steps) - 0.5) < _CLOSE)))


def _sum_of(graph: QuantizedGraph, tensor: str) -> ir.Node | None:
    producers = {value_name(value): node for node in graph.model.graph for value in node.outputs}
    node = producers.get(tensor)
    bounds = None if node is None else clip_bounds(node)
    if bounds is not None:
        inside = graph.placement.get(value_name(bounds[0]))
        node = producers.get(value_name(bounds[0])) if inside is not None and inside.fused else None
    return node if node is not None and node.op_type in ("Add", "Sub") else None
