"""Scales of sums that integer kernels and the file round alike (decision 0019)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import constant_value, value_name
from fullquant.numerics.qparams import QParams
from fullquant.numerics.sums import rounds_alike
from fullquant.placement.constants import adds_bias
from fullquant.placement.decision import Decision, Placement
from fullquant.runtime.executor import GraphModule


def agreeing_sums(model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]) -> dict[str, QParams]:
    """The same scales, some of those around sums raised so that `rounds_alike` holds, at most to a power of two.

    Of the three scales of a sum those are raised whose rounding errors then grow least: least sum of scale**2.
    qparams: of every activation that owns a scale; a sum with a constant whose scale is missing is left out. Only short
    scales change (`QuantSpec.mantissas`): with any others no sum is half-way but by accident.
    """
    found = dict(qparams)
    sums = [operands for node in model.graph if (operands := _operands(node, placement)) is not None]
    sums = [owners for owners in sums if all(owner in found and found[owner].spec.mantissas for owner in owners)]
    changed = True
    while changed:  # a scale that was raised may belong to other sums; powers of two are never raised, and agree
        changed = False
        for owners in sums:
            for owner, scale in zip(owners, _agreeing(owners, found), strict=True):
                if scale != float(found[owner].scale):
                    found[owner] = _with_scale(found[owner], scale)
                    changed = True
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


def _agreeing(owners: tuple[str, str, str], qparams: Mapping[str, QParams]) -> tuple[float, ...]:
    """The scales of two operands and their sum, raised as little as possible."""
    distinct = list(dict.fromkeys(owners))  # x + x, or a sum that shares the scale of an operand
    options = [_up_to_power_of_two(qparams[owner]) for owner in distinct]
    chosen = (dict(zip(distinct, scales, strict=True)) for scales in product(*options))
    agreeing = (found for found in chosen if rounds_alike(*(found[owner] for owner in owners)))
    least = min(agreeing, key=lambda found: sum(scale * scale for scale in found.values()))
    return tuple(least[owner] for owner in owners)


def _up_to_power_of_two(params: QParams) -> list[float]:
    """The scale and the larger ones that its grid has, up to the next power of two."""
    mantissa, exponent = np.frexp(float(params.scale))
    larger = [m for m in (*params.spec.mantissas, 2.0) if m >= 2 * mantissa] if mantissa != 0.5 else [1.0]
    return [float(np.ldexp(m, int(exponent) - 1)) for m in larger]


def _with_scale(params: QParams, scale: float) -> QParams:
    return QParams(params.spec, np.asarray(scale, np.float32), params.zero_point)
