"""Scales of sums that integer kernels and the file round alike (decision 0019)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import constant_value, value_name
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.numerics.sums import rounds_alike
from fullquant.placement.constants import adds_bias
from fullquant.placement.decision import Decision, Placement
from fullquant.runtime.executor import GraphModule


def agreeing_sums(model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]) -> dict[str, QParams]:
    """The same scales, those of sums raised to the next with which `rounds_alike` holds, by a third at most each time.

    qparams: of every activation that owns a scale; an Add with a constant whose scale is missing is left out. Only
    short scales change (`QuantSpec.mantissas`): with any others no sum is half-way but by accident. A power of two
    always agrees, so that the end is reached.
    """
    found = dict(qparams)
    sums = [operands for node in model.graph if (operands := _operands(node, placement)) is not None]
    changed = True
    while changed:  # a scale that was raised may be an operand of another sum, or belong to several
        changed = False
        for first, second, result in sums:
            if first in found and second in found and result in found:
                raised = _raised(found[first], found[second], found[result])
                changed |= raised is not found[result]
                found[result] = raised
    return found


def settle_sums(student: GraphModule, model: ir.Model) -> int:
    """`agreeing_sums` of a student's present scales, in place; how many scales it raised."""
    if student.placement is None:
        return 0
    before = student.current_qparams()
    after = agreeing_sums(model, student.placement, before)
    raised = {name: params for name, params in after.items() if params is not before[name]}
    student.set_qparams(raised)
    return len(raised)


def _operands(node: ir.Node, placement: Placement) -> tuple[str, str, str] | None:
    """The owners of the three scales of a sum that is computed in integers."""
    if node.op_type not in ("Add", "Sub") or adds_bias(node) or len(node.inputs) != 2:
        return None
    owners: list[str] = []
    for value in (*node.inputs, node.outputs[0]):
        if value is None or not value.name:
            return None
        decision = placement.get(value_name(value))
        if decision is None or not _is_read(decision, node, is_constant=constant_value(value) is not None):
            return None
        owners.append(placement.scale_owner(value_name(value)))
    return owners[0], owners[1], owners[2]


def _is_read(decision: Decision, node: ir.Node, *, is_constant: bool) -> bool:
    if decision.spec is None or decision.spec.axis is not None or decision.kind == "bias":
        return False
    return is_constant or decision.consumers is None or node.name in decision.consumers or decision.fused


def _raised(first: QParams, second: QParams, result: QParams) -> QParams:
    """The result's grid with the smallest scale from its own upwards that agrees."""
    spec = result.spec
    scale = float(result.scale)
    if not spec.mantissas:
        return result
    # The factors within one octave lead past a power of two, which agrees.
    while not rounds_alike(float(first.scale), float(second.scale), scale):
        scale = _next(scale, spec)
    return result if scale == float(result.scale) else _with_scale(result, scale)


def _next(scale: float, spec: QuantSpec) -> float:
    mantissa, exponent = np.frexp(scale)
    larger = [m for m in spec.mantissas if m > 2 * mantissa]
    return float(np.ldexp(larger[0] if larger else 2.0, int(exponent) - 1))


def _with_scale(params: QParams, scale: float) -> QParams:
    if params.spec.symmetric:
        return symmetric(params.spec, scale)
    return QParams(params.spec, np.float32(scale), params.zero_point)
