"""Batches -> a scale for every placed tensor. One forward pass in float feeds all observers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.calibration.observers import Observer
from fullquant.calibration.pieces import pieces
from fullquant.distributed import ALONE, World
from fullquant.errors import DataError
from fullquant.numerics.qparams import FloatArray, QParams, QuantSpec, symmetric
from fullquant.placement.constants import layer_bias
from fullquant.placement.decision import Decision, Placement
from fullquant.runtime import kernels
from fullquant.runtime.executor import MOVES, GraphModule, moves_constants
from fullquant.runtime.fake_quantize import dense_view
from fullquant.runtime.torch_rules import attribute

# A bias is stored as int32 in units of scale_x * scale_w; half of the range is left to the sum of products.
_BIAS_LIMIT = float(2**30)
_WEIGHT_FACTORS = np.arange(1.0, 0.499, -0.0125, dtype=np.float32)
_SMALLEST_WEIGHT_SCALE = 1e-12
# Observers look at each tensor of a piece: fewer and larger ones cost less. EfficientNet-Lite0, one thread: 15.9 ms an
# image in pieces of 8, 14.4 of 16.
_PIECE = 2.0


_AnyObserver = TypeVar("_AnyObserver", bound=Observer)


def observe_activations(
    module: GraphModule,
    model: ir.Model,
    placement: Placement,
    batches: Iterable[npt.NDArray[np.float32]],
    make_observer: Callable[[], _AnyObserver],
    world: World = ALONE,
    on_outputs: Callable[[FloatArray], None] | None = None,
) -> dict[str, _AnyObserver]:
    """An observer for each activation that owns a scale, filled in one pass over the batches.

    module: the float graph. batches: images [N, C, H, W]; with several processes the `own` share of this one, and the
    observers are merged at the end. on_outputs: gets the outputs of each batch, [N, ...], which the pass yields
    anyway. DataError when there is no batch at all.
    """
    owners = observed_tensors(model, placement)
    observers = {owner: make_observer() for owner in dict.fromkeys(owners.values())}
    device = next(iter(module.parameters())).device
    bounds = telling_ranges(model, placement)

    members = Counter(owners.values())
    left: Counter[str] = Counter()  # how often an owner's observer is still fed by this batch

    def tap(name: str, tensor: torch.Tensor) -> None:
        owner = owners.get(name)
        if owner is not None:
            if name in bounds:
                tensor = torch.clamp(tensor, *bounds[name])
            left[owner] -= 1
            observers[owner].update(dense_view(tensor.float())[1].cpu().numpy(), left[owner] > 0)

    count = 0
    with torch.inference_mode():
        for batch in batches:
            parts = list(pieces(batch, _PIECE))
            left.update({owner: len(parts) * tensors for owner, tensors in members.items()})
            outputs = [
                module(torch.from_numpy(part).to(device), tap=tap, tapped=owners).cpu().numpy() for part in parts
            ]
            if on_outputs is not None:
                on_outputs(np.concatenate(outputs))
            count += 1
    if int(world.sum(count)) == 0:
        raise DataError("calibration got no images; check the data set and QuantAware.calibration_images")
    for observer in observers.values():
        observer.merge(world)
    return observers


def observed_qparams(observers: Mapping[str, Observer], placement: Placement) -> dict[str, QParams]:
    """What the observers say, on the grids of the placement."""
    return {owner: observer.qparams(_spec(placement[owner])) for owner, observer in observers.items()}


def _spec(decision: Decision) -> QuantSpec:
    if decision.spec is None:
        raise ValueError(f"{decision.tensor!r} is not placed")
    return decision.spec


def observed_tensors(model: ir.Model, placement: Placement) -> dict[str, str]:
    """tensor -> the scale owner whose range it belongs to; without tensors that only repeat values of their group."""
    producers = {str(v.name): node for node in model.graph for v in node.outputs if v.name}
    found: dict[str, str] = {}
    for decision in placement:
        if decision.kind != "activation" or decision.spec is None or decision.fused:
            continue
        owner = placement.scale_owner(decision.tensor)
        node = producers.get(decision.tensor)
        if node is not None and node.op_type in MOVES and not moves_constants(node):
            sources = [placement.get(str(v.name)) for v in node.inputs if v is not None and v.const_value is None]
            if all(
                s is not None and s.spec is not None and not s.fused and placement.scale_owner(s.tensor) == owner
                for s in sources
            ):
                continue
        found[decision.tensor] = owner
    return found


def telling_ranges(model: ir.Model, placement: Placement) -> dict[str, tuple[float, float]]:
    """tensor -> the range outside which its readers cannot tell values apart.

    HardSwish is 0 below -3, HardSigmoid constant outside [-beta/alpha, (1-beta)/alpha]: steps spent on values beyond
    are wasted, and clipping there changes nothing. Only for tensors that share no scale and are no output of the model.
    """
    outputs = {str(v.name) for v in model.graph.outputs}
    shared = {d.shares for d in placement if d.shares is not None and not d.fused}
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            readers = [use.node for use in value.uses()]
            ranges = [_telling_range(reader) for reader in readers]
            if not readers or None in ranges or name in outputs or name in shared:
                continue
            decision = placement.get(name)
            if decision is not None and decision.spec is not None and decision.shares is None:
                known = [r for r in ranges if r is not None]
                found[name] = (min(low for low, _ in known), max(high for _, high in known))
    return found


def _telling_range(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "HardSwish":
        return -3.0, math.inf
    if node.op_type == "HardSigmoid":
        alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
        return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else None
    return None


def calibrate_weights(model: ir.Model, placement: Placement, activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """QParams of each placed weight: least squared error per channel, and a floor that keeps biases inside int32."""
    found: dict[str, QParams] = {}
    floors = bias_floors(model, placement, activations)
    for decision in placement:
        if decision.kind != "weight" or decision.spec is None:
            continue
        value = model.graph.initializers[decision.tensor].const_value
        assert value is not None
        scale = weight_scale(np.asarray(value.numpy(), np.float32), decision.spec)
        floor = floors.get(decision.tensor)
        found[decision.tensor] = symmetric(decision.spec, scale if floor is None else np.maximum(scale, floor))
    return found


def weight_scale(weight: FloatArray, spec: QuantSpec) -> FloatArray:
    """The scale with the least squared error, per channel of spec.axis (shape (C,)) or per tensor (shape ())."""
    axis = spec.axis
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    peak, errors = kernels.channel_errors(np.ascontiguousarray(rows), _WEIGHT_FACTORS, spec.qmin, spec.qmax)
    scale = peak * _WEIGHT_FACTORS[np.argmin(errors, axis=1)] / np.float32(spec.qmax)
    scale = np.maximum(scale, np.float32(_SMALLEST_WEIGHT_SCALE)).astype(np.float32)
    return np.asarray(scale[0] if axis is None else scale, np.float32)


def bias_floors(model: ir.Model, placement: Placement, activations: Mapping[str, QParams]) -> dict[str, FloatArray]:
    """weight -> smallest weight scale with which |bias| / (scale_x * scale_w) stays within 2**30.

    A channel whose weights BatchNorm folding made tiny would otherwise overflow the int32 bias (issue 11415 of
    onnxruntime).
    """
    floors: dict[str, FloatArray] = {}
    for node in model.graph:
        bias = layer_bias(node)
        if bias is None or bias.const_value is None:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or weight.const_value is None:
            continue
        source, placed = placement.get(str(x.name)), placement.get(str(weight.name))
        if source is None or source.spec is None or placed is None or placed.spec is None:
            continue
        scale_x = float(activations[placement.scale_owner(str(x.name))].scale)
        floor = np.abs(np.asarray(bias.const_value.numpy(), np.float32)) / np.float32(scale_x * _BIAS_LIMIT)
        floors[str(weight.name)] = np.asarray(floor.max() if placed.spec.axis is None else floor, np.float32)
    return floors


def raise_to_bias_floors(model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]) -> dict[str, QParams]:
    """The same scales, those of weights raised where a bias would leave int32 (see `bias_floors`)."""
    raised = dict(qparams)
    for name, floor in bias_floors(model, placement, qparams).items():
        params = raised[name]
        if np.any(params.scale < floor):
            raised[name] = symmetric(params.spec, np.maximum(params.scale, floor))
    return raised
