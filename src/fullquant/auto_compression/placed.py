"""A placement in numbers and in rows, for reports and for `fullquant inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Decision, Placement
from fullquant.report.record import PlacementSummary, TensorEntry


def summary(placement: Placement) -> PlacementSummary:
    """Counts of int8 and float tensors; full_integer means that no activation stays float."""
    quantized, kept, reasons = Counter[str](), Counter[str](), Counter[str]()
    for decision in placement:
        if decision.spec is not None:
            quantized[decision.kind] += 1
        else:
            kept[decision.kind] += 1
            reasons[decision.reason] += 1
    full = kept["activation"] == 0
    return PlacementSummary(placement.target, full, dict(quantized), dict(kept), dict(reasons))


def tensors(placement: Placement, qparams: Mapping[str, QParams]) -> tuple[TensorEntry, ...]:
    """Every decision with its grid, its scales and its reason."""
    return tuple(_tensor(decision, qparams.get(placement.scale_owner(decision.tensor))) for decision in placement)


def _tensor(decision: Decision, params: QParams | None) -> TensorEntry:
    if decision.spec is None:
        return TensorEntry(decision.tensor, decision.kind, "float32", decision.reason)
    kind = "int32" if decision.kind == "bias" else "int8" if decision.spec.qmin < 0 else "uint8"
    grid = f"{kind} [{decision.spec.qmin}, {decision.spec.qmax}]"
    scale = None if params is None else np.atleast_1d(params.scale)
    return TensorEntry(
        decision.tensor, decision.kind, grid, decision.reason,
        scale_min=None if scale is None else float(scale.min()),
        scale_max=None if scale is None else float(scale.max()),
        channels=1 if scale is None else len(scale), shares=decision.shares, fused=decision.fused,
    )  # fmt: skip
