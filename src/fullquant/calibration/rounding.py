"""Weights rounded so that the outputs of their layer change least, not so that they change least themselves.

Rounding each weight to the nearest integer ignores that a layer's inputs are correlated: the error of one weight can
be made good by the others. For a layer y = W x the squared error of y is tr(D H D') with H = E[x x'] and D the change
of W; it is lowered by rounding column after column and moving what is left against the error
(GPTQ, Frantar et al. 2022, arXiv:2210.17323, after OBQ, arXiv:2208.11580). No labels, no gradients.

Measured on EfficientNet-Lite0 (384 images, activations in float, KL divergence): nearest 0.0030, this with the moments
of the float inputs 0.0008. With those of the student, as here, it was measured with rounded activations only
(decision 0008).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.calibration.pieces import pieces
from fullquant.calibration.windows import Window, spread_evenly
from fullquant.placement.decision import Placement
from fullquant.runtime import kernels
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.fake_quantize import FakeQuantize
from fullquant.runtime.torch_rules import attribute

Tensor = torch.Tensor

# H is K x K and its factorisation takes K**3 / 3 multiply-adds: larger layers are rounded to nearest.
_LARGEST_INPUTS = 4608
# Samples of x for each layer: so many, and more than K, or H would be the samples' own and not the data's.
_SAMPLES, _SAMPLES_PER_INPUT = 1024, 2
# Added to the diagonal, as a share of its mean: what H does not know must not be exploited.
_DAMPING = 0.01


@dataclass(frozen=True)
class _Layer:
    """A quantized layer as y = W x. weight: its name; groups: convolution groups; input: the tensor that it reads."""

    weight: str
    input: str
    groups: int
    size: int
    window: Window | None = None
    transposed: bool = False

    def samples(self, x: Tensor, count: int, random: torch.Generator) -> Tensor:
        """About `count` samples of the layer's inputs, drawn evenly over images and positions: [rows, taps, C]."""
        if self.window is None:
            rows = x.reshape(-1, 1, x.shape[-1])
            return rows[spread_evenly(len(rows), count, random).to(x.device)]
        return self.window.samples(x, count, random)

    def moments(self, samples: Tensor) -> Tensor:
        """H [G, K, K], the sum of x x' over samples [rows, taps, C], K in the order of the weight: channel, tap."""
        rows, taps, channels = samples.shape
        if channels == self.groups and samples.device.type == "cpu":
            return torch.from_numpy(kernels.channel_products(samples.contiguous().numpy()))
        groups = samples.reshape(rows, taps, self.groups, channels // self.groups)
        matrix = groups.permute(2, 0, 3, 1).reshape(self.groups, rows, self.size)
        return matrix.transpose(1, 2) @ matrix


def compensate_rounding(
    student: GraphModule,
    model: ir.Model,
    placement: Placement,
    batches: Iterable[npt.NDArray[np.float32]],
) -> int:
    """Rounds the student's weights onto their grids, layer by layer; scales stay. Returns how many layers it rounded.

    batches: images [N, C, H, W], one forward pass of the student: x is what its layers read, rounded, with the errors
    of the layers before. Float inputs would let a layer lean on small differences that rounding drowns. Layers with
    more than 4608 inputs, and those whose inputs say nothing (H is not positive), keep their weights.
    """
    layers = _layers(model, placement)
    moments = _second_moments(student, layers, list(batches))
    rounded = 0
    for layer in layers:
        if layer.weight in moments and _round(layer, student, moments[layer.weight]):
            rounded += 1
    return rounded


def _layers(model: ir.Model, placement: Placement) -> list[_Layer]:
    found: list[_Layer] = []
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or weight.const_value is None or len(list(weight.uses())) > 1:
            continue
        decision = placement.get(str(weight.name))
        layer = None if decision is None or decision.spec is None else _layer(node, x, weight)
        if layer is not None and layer.size <= _LARGEST_INPUTS:
            found.append(layer)
    return found


def _layer(node: ir.Node, x: ir.Value, weight: ir.Value) -> _Layer | None:
    assert weight.const_value is not None
    shape = list(weight.const_value.numpy().shape)
    name, source = str(weight.name), str(x.name)
    if node.op_type == "Conv":
        if len(shape) != 4:
            return None
        window = Window.of(node, (shape[2], shape[3]))
        return _Layer(name, source, int(attribute(node, "group", 1)), shape[1] * shape[2] * shape[3], window)
    if len(shape) != 2 or attribute(node, "transA", 0):
        return None
    transposed = not attribute(node, "transB", 0)
    return _Layer(name, source, 1, shape[0] if transposed else shape[1], transposed=transposed)


def _second_moments(
    student: GraphModule, layers: list[_Layer], batches: list[npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """weight -> H [G, K, K], summed over samples of what the layer reads."""
    readers: dict[str, list[_Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(layer)
    moments: dict[str, Tensor] = {}
    parts = [piece for batch in batches for piece in pieces(batch)]
    random = torch.Generator().manual_seed(0)

    def tap(name: str, tensor: Tensor) -> None:
        for layer in readers.get(name, ()):
            wanted = max(_SAMPLES, _SAMPLES_PER_INPUT * layer.size)
            samples = layer.samples(tensor.float(), -(-wanted // len(parts)), random)
            quantizer = _read_through(student, layer.input)
            product = layer.moments(samples if quantizer is None else quantizer(samples))
            moments[layer.weight] = moments[layer.weight] + product if layer.weight in moments else product

    device = next(student.parameters()).device
    student.freeze()
    try:
        with torch.inference_mode():
            for part in parts:
                student(torch.from_numpy(part).to(device), tap=tap, tapped=readers)
    finally:
        student.freeze(False)
    return moments


def _read_through(student: GraphModule, tensor: str) -> FakeQuantize | None:
    """What rounds the tensor for its readers; a tensor that is on the grid already stays what it is."""
    assert student.placement is not None
    decision = student.placement.get(tensor)
    if decision is None or decision.spec is None or decision.fused:
        return None
    return student.quantizer(student.placement.scale_owner(tensor))


def _round(layer: _Layer, student: GraphModule, moments: Tensor) -> bool:
    quantizer = student.quantizer(layer.weight)
    assert quantizer is not None
    factor = _inverse_factor(moments)
    if factor is None:
        return False
    weight = student.parameter(layer.weight)
    matrix = weight.detach().t() if layer.transposed else weight.detach()
    rows = matrix.reshape(layer.groups, -1, layer.size).cpu().contiguous().numpy().copy()
    scale = quantizer.step().cpu().expand(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2]).contiguous().numpy()
    kernels.compensated_rounding(rows, factor, scale, quantizer.qlow, quantizer.qhigh)
    result = torch.from_numpy(rows).reshape(matrix.shape)
    weight.data.copy_(result.t() if layer.transposed else result)
    return True


def _inverse_factor(moments: Tensor) -> npt.NDArray[np.float32] | None:
    """U with H^-1 = U' U, upper, [G, K, K]; None where H has no inverse even after damping."""
    wide = moments.double().cpu().clone()
    diagonal = wide.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    if not bool(torch.isfinite(mean).all()):
        return None
    # A group without any input is rounded to nearest: H is then a multiple of the identity.
    diagonal.add_(torch.where(mean > 0, _DAMPING * mean, torch.ones_like(mean)))
    lower, failed = torch.linalg.cholesky_ex(wide)
    if bool(failed.any()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if bool(failed.any()):
        return None
    result: npt.NDArray[np.float32] = upper.float().contiguous().numpy()
    return result
