"""MobileNetV3-large in plain PyTorch (Howard et al. 2019, arXiv:1905.02244, table 1), BatchNorm folded.

The networks that are compared are exported ones: their BatchNorm is folded into convolutions with a bias, so this one
has none. Weights are random; a step takes as long with them as with trained ones. Imports torch only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

# kernel, expanded channels, channels, squeeze-and-excite, hard swish (else relu), stride
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


class _ConvAct(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str = ""):
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)]
        if act:
            layers.append(nn.Hardswish() if act == "hard_swish" else nn.ReLU())
        super().__init__(*layers)


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.excite(scale))


class _Block(nn.Module):
    def __init__(self, inputs: int, kernel: int, expanded: int, outputs: int, excite: bool, swish: bool, stride: int):
        super().__init__()
        act = "hard_swish" if swish else "relu"
        self.shortcut = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            _ConvAct(inputs, expanded, act=act),
            _ConvAct(expanded, expanded, kernel, stride, groups=expanded, act=act),
            _SqueezeExcite(expanded) if excite else nn.Identity(),
            _ConvAct(expanded, outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


class MobileNetV3Large(nn.Module):
    """images [N, 3, H, W] -> logits [N, classes]."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks, channels = [], 16
        for kernel, expanded, outputs, excite, swish, stride in _BLOCKS:
            blocks.append(_Block(channels, kernel, expanded, outputs, excite, swish, stride))
            channels = outputs
        self.features = nn.Sequential(
            _ConvAct(3, 16, 3, 2, act="hard_swish"), *blocks, _ConvAct(channels, 960, act="hard_swish")
        )
        self.last = _ConvAct(960, 1280, act="hard_swish")
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(self.last(x), 1))


def mobilenetv3_large(seed: int = 0) -> MobileNetV3Large:
    """The network with the same random weights in every process that asks for the same seed."""
    torch.manual_seed(seed)
    net = MobileNetV3Large().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Variance of the outputs like that of the inputs, so that activations neither vanish nor overflow.
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(1.7 / fan))
            assert module.bias is not None
            nn.init.normal_(module.bias, std=0.1)
    return net
