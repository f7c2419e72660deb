"""Correction of channel statistics: rounding shifts the mean of a channel and shrinks its spread; both are taken back.

The mean goes into the bias (bias correction, Nagel et al. 2019, arXiv:1906.04721, section 4.2, in its empirical form).
The spread goes into the weight scale, so that the integer weights stay as they are: without it the corrected means
leave the logits of EfficientNet-Lite0 5% too small, and the KL divergence grows where it should fall. The gain matches
the standard deviations, as a BatchNorm re-estimated behind the rounded layer would.

All layers are corrected in one forward pass: each layer's statistics are compared while the pass goes through it, so
that later layers see the corrected values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.placement.decision import Placement
from fullquant.runtime import kernels
from fullquant.runtime.executor import GraphModule

Tensor = torch.Tensor

_LARGEST_GAIN = 1.25
# Below this spread a channel is constant on the images, and its gain is noise.
_SMALLEST_VARIANCE = 1e-12


def correct_statistics(
    teacher: GraphModule,
    student: GraphModule,
    model: ir.Model,
    placement: Placement,
    images: npt.NDArray[np.float32],
    *,
    gain: bool = True,
) -> int:
    """Gives each quantized Conv and Gemm of the student the channel means (and deviations) of the teacher.

    output' = gain * output + shift, per output channel; gain in [1/1.25, 1.25], folded into weights, weight scales
    and biases. images: [N, C, H, W], one batch that is held in memory as a whole. gain=False corrects the means only.
    Returns the number of layers corrected.
    """
    layers = _layers(model, placement)
    moments: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str, tensor: Tensor) -> None:
        if name in layers:
            moments[name] = _moments(tensor)

    def correct(name: str, tensor: Tensor) -> Tensor | None:
        if name not in layers:
            return None
        weight, bias = layers[name]
        (mean, variance), (own_mean, own_variance) = moments[name], _moments(tensor)
        factor = torch.ones_like(mean)
        if gain and _per_channel(student, weight):
            usable = (variance > _SMALLEST_VARIANCE) & (own_variance > _SMALLEST_VARIANCE)
            factor = torch.where(usable, torch.sqrt(variance / own_variance.clamp_min(_SMALLEST_VARIANCE)), factor)
            factor = factor.clamp(1 / _LARGEST_GAIN, _LARGEST_GAIN)
            student.scale_weight(weight, factor)
        shift = mean - factor * own_mean
        student.parameter(bias).data.mul_(factor).add_(shift)
        shape = (1, -1, 1, 1) if tensor.ndim == 4 else (1, -1)
        return tensor.mul_(factor.view(shape)).add_(shift.view(shape))

    batch = torch.from_numpy(images).to(next(student.parameters()).device)
    with torch.no_grad():
        teacher(batch, tap=record)
        student(batch, tap=correct)
        if gain and any(q.spec.mantissas for q in student.fake_quantizers()):
            # A short scale cannot follow a gain, so that the weights were rounded anew: their means are off again.
            gain = False
            student(batch, tap=correct)
    return len(layers)


def _layers(model: ir.Model, placement: Placement) -> dict[str, tuple[str, str]]:
    """output tensor -> (weight, bias) of each quantized layer with a bias."""
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        weight, bias = node.inputs[1], node.inputs[2]
        if weight is None or bias is None or bias.const_value is None or len(list(bias.uses())) > 1:
            continue
        decision = placement.get(str(weight.name))
        if decision is not None and decision.spec is not None and len(list(weight.uses())) == 1:
            found[str(node.outputs[0].name)] = (str(weight.name), str(bias.name))
    return found


def _per_channel(student: GraphModule, weight: str) -> bool:
    quantizer = student.quantizer(weight)
    return quantizer is not None and quantizer.spec.axis is not None


def _moments(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) per channel, shapes (C,)."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        rows = tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1]) if tensor.ndim == 4 else tensor
        mean, variance = kernels.channel_moments(rows.contiguous().numpy())
        return torch.from_numpy(mean).float(), torch.from_numpy(variance).float()
    axes = (0, 2, 3) if tensor.ndim == 4 else (0,)
    spread, middle = torch.var_mean(tensor, dim=axes, correction=0)
    return middle, spread
