"""HardSigmoid and HardSwish are recognised in the forms that exporters write them."""

from __future__ import annotations

import math

import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import (
    OP_TYPE,
    attribute_float,
    constant_operand,
    producer_of,
    replace_node,
    sole_consumer,
)

_TOLERANCE = 1e-6


def fuse_hard_sigmoid(model: ir.Model) -> int:
    """clip(x + c, 0, m) * (1/m) -> HardSigmoid(alpha = 1/m, beta = c/m).

    ONNX HardSigmoid: max(0, min(1, alpha * x + beta)). Expects arithmetic in normal form.
    """
    count = 0
    for node in list(model.graph):
        operand = _scaled(node)
        match = None if operand is None else _shifted_clip(operand[0])
        if operand is None or match is None or sole_consumer(operand[0]) is not node:
            continue
        source, shift, high = match
        if math.isclose(operand[1] * high, 1.0, rel_tol=_TOLERANCE):
            fused = replace_node(node, "HardSigmoid", [source], {"alpha": operand[1], "beta": shift * operand[1]})
            # The source has no one operator for this: "elementwise_mul" would be misleading.
            fused.metadata_props.pop(OP_TYPE, None)
            count += 1
    return count


def fuse_hard_swish(model: ir.Model) -> int:
    """x * HardSigmoid(x; 1/6, 1/2) and x * clip(x + 3, 0, 6) / 6 in any order -> HardSwish(x).

    ONNX HardSwish: x * max(0, min(1, x / 6 + 1/2)). Expects arithmetic in normal form.
    """
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.op_type != "Mul" or node.domain != "":
            continue
        factors, coefficient = _product(node)
        source = _hard_swish_input(factors, coefficient)
        # A product that is scaled further by one reader is matched there, with the scale.
        if source is not None:
            replace_node(node, "HardSwish", [source]).metadata_props.pop(OP_TYPE, None)
            count += 1
    return count


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(y, c) of a node y * c with one constant number c > 0."""
    operand = constant_operand(node) if node.op_type == "Mul" and node.domain == "" else None
    if operand is None or operand[1].size != 1 or operand[1].ndim > len(operand[0].shape or ()):
        return None
    factor = float(operand[1].reshape(()))
    return (operand[0], factor) if factor > 0 else None


def _shifted_clip(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """(x, c, high) where value = clip(x + c, 0, high), both steps read by nothing else."""
    clip = producer_of(value)
    bounds = None if clip is None else clip_bounds(clip)
    if clip is None or bounds is None or bounds[1] != 0.0 or math.isinf(bounds[2]):
        return None
    add = producer_of(bounds[0], "Add")
    operand = None if add is None else constant_operand(add)
    if operand is None or operand[1].size != 1 or sole_consumer(bounds[0]) is not clip:
        return None
    if operand[1].ndim > len(operand[0].shape or ()):
        return None
    return operand[0], float(operand[1].reshape(())), bounds[2]


def _product(node: ir.Node) -> tuple[list[ir.Value], float]:
    """A Mul as (computed factors, constant factor), through inner products by one number that nothing else reads."""
    factors: list[ir.Value] = []
    scaled = _scaled(node)
    pending = [scaled[0]] if scaled else [value for value in node.inputs if value is not None]
    coefficient = scaled[1] if scaled else 1.0
    while pending:
        value = pending.pop()
        producer = producer_of(value, "Mul")
        inner = None if producer is None else _scaled(producer)
        if producer is None or sole_consumer(value) is None:
            factors.append(value)
        elif inner is not None:
            coefficient *= inner[1]
            pending.append(inner[0])
        elif scaled and value is scaled[0]:
            pending.extend(factor for factor in producer.inputs if factor is not None)
        else:
            factors.append(value)
    return factors, coefficient


def _hard_swish_input(factors: list[ir.Value], coefficient: float) -> ir.Value | None:
    """x if the product of the factors and the coefficient is HardSwish(x)."""
    if len(factors) != 2:
        return None
    for source, gate in (factors, factors[::-1]):
        if sole_consumer(gate) is None:
            continue
        if _is_gate(gate, source, coefficient):
            return source
    return None


def _is_gate(gate: ir.Value, source: ir.Value, coefficient: float) -> bool:
    """Whether coefficient * gate = clip(source / 6 + 1/2, 0, 1)."""
    hard_sigmoid = producer_of(gate, "HardSigmoid")
    if hard_sigmoid is not None:
        return (
            hard_sigmoid.inputs[0] is source
            and math.isclose(coefficient, 1.0, rel_tol=_TOLERANCE)
            and math.isclose(attribute_float(hard_sigmoid, "alpha", 0.2), 1 / 6, rel_tol=_TOLERANCE)
            and math.isclose(attribute_float(hard_sigmoid, "beta", 0.5), 0.5, rel_tol=_TOLERANCE)
        )
    match = _shifted_clip(gate)
    if match is None or match[0] is not source or not math.isclose(coefficient, 1 / 6, rel_tol=_TOLERANCE):
        return False
    return math.isclose(match[1], 3.0, rel_tol=_TOLERANCE) and math.isclose(match[2], 6.0, rel_tol=_TOLERANCE)
