"""Scales of weights that a runtime which rounds weights again leaves as they are.

Paddle's oneDNN passes make float weights of the integers in a file, and integers of those with max|w| / 127 of each
output channel (Paddle 37f8a1cd3b, paddle/fluid/framework/ir/onednn/compute_propagate_scales_onednn_pass.cc). A channel
that holds +-127 comes out as it went in. So a channel that does not gets that scale here, and with it a finer grid.
"""

from __future__ import annotations

import torch

from fullquant.errors import ModelError
from fullquant.placement.target import find_target
from fullquant.runtime.executor import GraphModule


def fill_weights(student: GraphModule) -> int:
    """Lowers scales of weights, in place, so that every channel holds qmax; returns how many channels had not.

    Only for targets that round weights again, and scales per channel. Channels of zeros keep theirs.
    """
    placement = student.placement
    if placement is None or not find_target(placement.target).requantizes_weights:
        return 0
    lowered = 0
    for decision in placement:
        if decision.kind != "weight" or decision.spec is None or decision.spec.axis is None or decision.spec.mantissas:
            continue
        quantizer = student.quantizer(decision.tensor)
        if quantizer is None:
            raise ModelError(f"weight {decision.tensor!r} is placed but has no scale")
        weight = student.parameter(decision.tensor).detach()
        others = [axis for axis in range(weight.ndim) if axis != decision.spec.axis % weight.ndim]
        largest = weight.abs().amax(dim=others)
        scale = quantizer.step()
        coarse = (largest > 0) & (torch.round(largest / scale) < decision.spec.qmax)
        if bool(coarse.any()):
            lowered += int(coarse.sum())
            quantizer.set_scale(torch.where(coarse, largest / decision.spec.qmax, scale).cpu().numpy())
    return lowered
