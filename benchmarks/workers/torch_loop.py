"""The distillation loop of the peers on PyTorch: the same loss, optimizer and order of calls as fullquant's trainer."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from gate import Gate
from images import image_batches
from torch import nn

LEARNING_RATE = 1e-5


def arguments(description: str | None, quantizers: Sequence[str] = ()) -> argparse.Namespace:
    """The options of a peer's worker; the network is always that of mobilenetv3.py. quantizers: choices, if any."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--variant", choices=("float", "qat"), required=True)
    parser.add_argument("--layout", choices=("nchw", "channels_last"), default="nchw")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    if quantizers:
        parser.add_argument("--quantizer", choices=quantizers, default=quantizers[0])
    return parser.parse_args()


def memory_format(layout: str) -> torch.memory_format:
    """torch's name for a layout."""
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def tensors(given: argparse.Namespace) -> list[torch.Tensor]:
    """The image batches in the layout that is asked for."""
    arrays = image_batches(given.batch, *given.size)
    return [torch.from_numpy(a).contiguous(memory_format=memory_format(given.layout)) for a in arrays]


def perturb(parameters: Iterable[torch.Tensor]) -> None:
    """Five percent of noise on a student's parameters.

    One that equals its teacher would have a loss of zero and gradients of rounding noise: no real step is like that.
    """
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=noise))


def train(gate: Gate, teacher: nn.Module, student: nn.Module, batches: list[torch.Tensor], **facts: Any) -> None:
    """Steps as the gate asks for them: KL divergence of the logits, Adam on everything that is learned."""
    learned = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE)
    for images in gate.batches(batches, learned=sum(p.numel() for p in learned), **facts):
        with torch.inference_mode():
            expected = teacher(images)
        found = student(images)
        loss = F.kl_div(
            F.log_softmax(found, 1), F.log_softmax(expected.clone(), 1), reduction="batchmean", log_target=True
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(loss.detach()):
            raise SystemExit(f"the loss became {float(loss)}: this is no training step any more")
        optimizer.step()
