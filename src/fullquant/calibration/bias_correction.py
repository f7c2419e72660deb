"""Bias correction: rounding shifts the mean of a channel; the bias takes the shift back.

Nagel et al. 2019, arXiv:1906.04721, section 4.2, in its empirical form. All layers are corrected in one forward pass:
each layer's mean is compared while the pass goes through it, so that later layers see the corrected values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.placement.decision import Placement
from fullquant.runtime.executor import GraphModule


def correct_biases(
    teacher: GraphModule, student: GraphModule, model: ir.Model, placement: Placement, images: npt.NDArray[np.float32]
) -> int:
    """Adds mean(float output) - mean(quantized output), per channel, to the bias of each quantized Conv and Gemm.

    images: [N, C, H, W], one batch that is held in memory as a whole. Returns the number of layers corrected.
    """
    layers: dict[str, str] = {}
    for node in model.graph:
        weight = node.inputs[1] if len(node.inputs) > 2 else None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type not in ("Conv", "Gemm") or weight is None or bias is None or bias.const_value is None:
            continue
        decision = placement.get(str(weight.name))
        if decision is not None and decision.spec is not None:
            layers[str(node.outputs[0].name)] = str(bias.name)
    means: dict[str, torch.Tensor] = {}

    def record(name: str, tensor: torch.Tensor) -> None:
        if name in layers:
            means[name] = _channel_mean(tensor)

    def correct(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        if name not in layers:
            return None
        shift = means[name] - _channel_mean(tensor)
        student.parameter(layers[name]).data.add_(shift)
        return tensor + (shift.view(1, -1, 1, 1) if tensor.ndim == 4 else shift)

    device = next(student.parameters()).device
    batch = torch.from_numpy(images).to(device)
    with torch.no_grad():
        teacher(batch, tap=record)
        student(batch, tap=correct)
    return len(layers)


def _channel_mean(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mean(dim=(0, 2, 3)) if tensor.ndim == 4 else tensor.mean(dim=0)
