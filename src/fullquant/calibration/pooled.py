"""Scales of tensors that are only averaged: the error that counts is that of the average.

Behind HardSwish most values of a channel are small and of one sign. A step that serves the few large ones rounds all
the small ones to zero, and what is lost does not cancel in the average: the mean squared error of the tensor is small,
that of its mean is not. Measured on mobilenetv3_large_cifar10, min-max scales: rounding the tensor in front of the last
average pool alone costs a KL divergence of 0.56, more than all other tensors together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.calibration.observers import EveryObserver, qparams_of_range
from fullquant.distributed import ALONE, World
from fullquant.numerics.qparams import QParams, symmetric
from fullquant.placement.decision import Placement
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.fake_quantize import fake_quantize_tensor

# Shares of the observed range that are tried, from all of it to a twentieth, 13% apart.
_SHARES = np.geomspace(1.0, 0.05, 25)


def averaged_tensors(model: ir.Model, placement: Placement) -> list[str]:
    """Placed activations that nothing but GlobalAveragePool reads, with a symmetric scale of their own."""
    outputs = {str(v.name) for v in model.graph.outputs}
    shared = {d.shares for d in placement if d.shares is not None and not d.fused}
    found: list[str] = []
    for node in model.graph:
        for value in node.outputs:
            name, readers = str(value.name), [use.node.op_type for use in value.uses()]
            if not readers or set(readers) != {"GlobalAveragePool"} or name in outputs or name in shared:
                continue
            decision = placement.get(name)
            spec = None if decision is None or decision.shares is not None else decision.spec
            if spec is not None and spec.symmetric:
                found.append(name)
    return found


def pooled_qparams(
    module: GraphModule,
    model: ir.Model,
    placement: Placement,
    batches: Sequence[npt.NDArray[np.float32]],
    observers: Mapping[str, EveryObserver],
    world: World = ALONE,
) -> dict[str, QParams]:
    """tensor -> the scale with the least squared error of its averages over height and width.

    module: the float graph. batches: of which each process takes its `own` share; observers: filled ones, for the
    range of each tensor.
    """
    names = averaged_tensors(model, placement)
    options: dict[str, list[QParams]] = {}
    for name in names:
        spec, seen = placement[name].spec, observers[name].histogram
        assert spec is not None
        full = qparams_of_range(seen.low, seen.high, spec)
        options[name] = [symmetric(spec, full.scale * np.float32(share)) for share in _SHARES]

    errors = [_errors(module, batch, options) for batch in world.own(batches)] if names else []
    # Added up batch by batch, so that the sum does not depend on the number of processes.
    total = sum(world.in_order(errors), np.zeros((len(names), len(_SHARES))))
    return {name: options[name][int(np.argmin(row))] for name, row in zip(names, total, strict=True)}


def _errors(
    module: GraphModule, batch: npt.NDArray[np.float32], options: Mapping[str, list[QParams]]
) -> npt.NDArray[np.float64]:
    """The squared errors of the averages on one batch, [tensors, options]."""
    errors = {name: np.zeros(len(made)) for name, made in options.items()}

    def tap(name: str, tensor: torch.Tensor) -> None:
        if name not in errors:
            return
        mean = tensor.mean(dim=(2, 3))
        for k, option in enumerate(options[name]):
            log_scale = torch.log(torch.tensor(float(option.scale)))
            rounded = fake_quantize_tensor(tensor, log_scale, option.spec.qmin, option.spec.qmax)
            errors[name][k] += float(((rounded.mean(dim=(2, 3)) - mean) ** 2).sum())

    with torch.inference_mode():
        module(torch.from_numpy(batch).to(next(iter(module.parameters())).device), tap=tap)
    return np.stack(list(errors.values()))
