"""Scales that change the model's answer least: each candidate is judged by the KL divergence that its errors cause.

To second order, a change d of one tensor moves the outputs by KL = 1/2 E_x E_y[(g . d)^2], where g is the gradient of
log p(y | x) with respect to the tensor and y is drawn from the model's own answer p (the Fisher information,
Amari 1998; BRECQ, Li et al. 2021, arXiv:2102.05426, uses its diagonal). Here the whole product g . d is taken for
each image: errors that have one sign, as from clipping, add up in it, errors that scatter cancel. No labels are
needed, and one backward pass serves all tensors and all candidates.

Measured on EfficientNet-Lite0, KL divergence of each tensor rounded alone, summed over its 62 tensors: min-max
0.0043, least squared error 0.0041, the better of the two for each tensor 0.0031.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.calibration.calibrator import observed_tensors, telling_ranges
from fullquant.calibration.observers import EveryObserver, grids_of_shares
from fullquant.calibration.pieces import pieces
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.runtime import kernels
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.fake_quantize import dense_view

Tensor = torch.Tensor

# Shares of the observed range that are tried, 9% apart: from a third more, against rounding up that clips, to a sixth.
_SHARES = np.geomspace(1.35, 1 / 6, 25)
# All activations of a piece and their gradients are in memory.
_PIECE = 0.5
_SMALLEST = 1e-12


def fisher_qparams(
    module: GraphModule,
    model: ir.Model,
    placement: Placement,
    batches: Iterable[npt.NDArray[np.float32]],
    observers: Mapping[str, EveryObserver],
    *,
    probabilities: bool,
    seed: int = 0,
) -> dict[str, QParams]:
    """The scale of each activation that owns one, by least expected KL divergence; observers give the ranges.

    module: the float graph. batches: images [N, C, H, W], each in one forward and backward pass. probabilities: whether
    the outputs are, as opposed to logits.
    """
    owners = observed_tensors(model, placement)
    options = {owner: _options(observers[owner], placement, owner) for owner in dict.fromkeys(owners.values())}
    bounds = telling_ranges(model, placement)
    costs = {owner: np.zeros(len(candidates)) for owner, candidates in options.items()}
    random = torch.Generator().manual_seed(seed)
    with _without_weight_gradients(module):
        for batch in (piece for whole in batches for piece in pieces(whole, _PIECE)):
            seen = _gradients(module, batch, set(owners), random, probabilities=probabilities)
            for name, (x, g) in seen.items():
                if name in bounds:
                    x = torch.clamp(x, *bounds[name])
                costs[owners[name]] += _costs(x, g, options[owners[name]])
    return {owner: candidates[int(np.argmin(costs[owner]))] for owner, candidates in options.items()}


def averaged_tensors(model: ir.Model, placement: Placement) -> list[str]:
    """Placed activations that nothing but GlobalAveragePool reads, with a scale of their own."""
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
            if spec is not None:
                found.append(name)
    return found


def _options(observer: EveryObserver, placement: Placement, owner: str) -> list[QParams]:
    """Different grids, the widest first: a tie goes to it."""
    spec = placement[owner].spec
    assert spec is not None
    return grids_of_shares(observer.histogram, _SHARES, spec)


@contextmanager
def _without_weight_gradients(module: GraphModule) -> Iterator[None]:
    """Nobody asks for the gradients of the weights, but what requires one is computed by kernels of our own."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_()


def _gradients(
    module: GraphModule,
    batch: npt.NDArray[np.float32],
    names: set[str],
    random: torch.Generator,
    *,
    probabilities: bool,
) -> dict[str, tuple[Tensor, Tensor]]:
    """tensor -> (values, gradient of log p(y)), y drawn from the outputs; tensors without a gradient are left out."""
    kept: dict[str, Tensor] = {}

    def tap(name: str, tensor: Tensor) -> None:
        # What is the same for every image, such as a class token before the patches join it, has no gradient.
        if name in names and tensor.requires_grad:
            kept[name] = tensor

    device = next(module.parameters()).device
    images = torch.from_numpy(batch).to(device).requires_grad_()
    with torch.enable_grad():
        output = module(images, tap=tap, tapped=names).flatten(1)
        log = torch.log(output.clamp_min(_SMALLEST)) if probabilities else torch.log_softmax(output, 1)
        direction = _directions(log.detach().exp().cpu(), random).to(device)
        found = torch.autograd.grad((direction * log).sum(), list(kept.values()), allow_unused=True)
    return {name: (tensor.detach(), g) for (name, tensor), g in zip(kept.items(), found, strict=True) if g is not None}


def _directions(p: Tensor, random: torch.Generator) -> Tensor:
    """Random vectors u [N, classes] with E[u u'] = diag(p) - p p', the second derivative of KL by log-probabilities.

    e_y - p with y drawn from p has the same covariance, but where the model is sure it is nearly zero most of the time
    and large otherwise; with random signs of all classes at once a few images tell as much as many.
    """
    root = p.sqrt()
    signs = torch.randint(0, 2, p.shape, generator=random) * 2.0 - 1.0
    return root * signs - p * (root * signs).sum(dim=1, keepdim=True)


def _costs(x: Tensor, g: Tensor, options: list[QParams]) -> npt.NDArray[np.float64]:
    """Half the sum over images of (g . d)^2, for each option."""
    x, _ = dense_view(x.float().cpu())
    if g.stride() != x.stride():
        g = torch.empty_like(x).copy_(g)
    scale = np.array([float(option.scale) for option in options], np.float32)
    shift = np.array([int(option.zero_point) for option in options], np.float32)
    spec = options[0].spec
    rows, slopes = (dense_view(t)[1].view(len(x), -1).numpy() for t in (x, g))
    dots = kernels.error_dots(rows, slopes, scale, np.float32(spec.qmin) - shift, np.float32(spec.qmax) - shift)
    return np.asarray(0.5 * (dots**2).sum(axis=0))
