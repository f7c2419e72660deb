"""Small convolutional classifiers in plain PyTorch, built as timm builds them: few blocks, few channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


def conv_bn(i: int, o: int, k: int = 1, s: int = 1, g: int = 1, act: nn.Module | None = None) -> nn.Sequential:
    """Convolution, normalization left unfused, activation."""
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([] if act is None else [act]))


class SqueezeExcite(nn.Module):
    """The gate of SE-ResNet (sigmoid) and MobileNetV3 (hard sigmoid)."""

    def __init__(self, c: int, gate: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1)
        self.gate, self.act = gate, act

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    """x + body(x), or a projected x, then an activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.body(x))


class Head(nn.Sequential):
    """Global pooling, flattening, dropout, classifier."""

    def __init__(self, c: int, classes: int = 10) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(0.2), nn.Linear(c, classes))


def bottleneck(c: int, groups: int = 1, se: bool = False) -> nn.Module:
    gate = [SqueezeExcite(c, nn.Sigmoid(), nn.ReLU())] if se else []
    body = nn.Sequential(
        conv_bn(c, c // 2, act=nn.ReLU()),
        conv_bn(c // 2, c // 2, 3, g=groups, act=nn.ReLU()),
        conv_bn(c // 2, c),
        *gate,
    )
    return Residual(body, act=nn.ReLU())


def stem(c: int, act: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(conv_bn(3, c, 3, 2, act=act or nn.ReLU()))


def resnet() -> nn.Module:
    return nn.Sequential(stem(16), nn.MaxPool2d(3, 2, 1), bottleneck(16), bottleneck(16), Head(16))


def resnext() -> nn.Module:
    return nn.Sequential(stem(16), nn.MaxPool2d(3, 2, 1), bottleneck(16, 4), bottleneck(16, 4), Head(16))


def se_resnet() -> nn.Module:
    return nn.Sequential(stem(16), nn.MaxPool2d(3, 2, 1), bottleneck(16, se=True), bottleneck(16, se=True), Head(16))


def regnet() -> nn.Module:
    down = Residual(
        nn.Sequential(conv_bn(16, 24, act=nn.ReLU()), conv_bn(24, 24, 3, 2, 3, nn.ReLU()), conv_bn(24, 24)),
        conv_bn(16, 24, 1, 2), nn.ReLU(),
    )  # fmt: skip
    return nn.Sequential(stem(16), down, bottleneck(24, 3, True), Head(24))


def inverted(c: int, act: nn.Module, k: int = 3, gate: nn.Module | None = None) -> nn.Module:
    body = [conv_bn(c, 2 * c, act=act), conv_bn(2 * c, 2 * c, k, g=2 * c, act=act)]
    return Residual(nn.Sequential(*body, *([] if gate is None else [gate]), conv_bn(2 * c, c)))


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(stem(16, nn.ReLU6()), inverted(16, nn.ReLU6()), inverted(16, nn.ReLU6()), Head(16))


def mobilenet_v3() -> nn.Module:
    gate = SqueezeExcite(32, nn.Hardsigmoid(), nn.ReLU())
    return nn.Sequential(
        stem(16, nn.Hardswish()), inverted(16, nn.ReLU(), 3, gate), inverted(16, nn.Hardswish(), 5),
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 32, 1), nn.Hardswish(), nn.Flatten(1), nn.Linear(32, 10),
    )  # fmt: skip


def mobilenet_v4() -> nn.Module:
    universal = nn.Sequential(
        conv_bn(16, 16, 5, g=16), conv_bn(16, 32, act=nn.ReLU()), conv_bn(32, 32, 3, g=32, act=nn.ReLU()),
        conv_bn(32, 16),
    )  # fmt: skip
    return nn.Sequential(stem(16), Residual(universal), inverted(16, nn.ReLU()), Head(16))


def efficientnet() -> nn.Module:
    gate = SqueezeExcite(32, nn.Sigmoid(), nn.SiLU())
    return nn.Sequential(stem(16, nn.SiLU()), inverted(16, nn.SiLU(), 3, gate), inverted(16, nn.SiLU(), 5), Head(16))


class RepBlock(nn.Module):
    """RepVGG's three branches, not merged."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.point, self.identity = conv_bn(c, c, 3), conv_bn(c, c), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


def repvgg() -> nn.Module:
    return nn.Sequential(stem(16), RepBlock(16), RepBlock(16), Head(16))


class DenseLayer(nn.Module):
    """Normalization in front of the convolutions, the input joined to the output."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2))
    return nn.Sequential(stem(16), DenseLayer(16), DenseLayer(24), transition, DenseLayer(16), nn.BatchNorm2d(24),
                         nn.ReLU(), Head(24))  # fmt: skip


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten(1), nn.Linear(256, 32), nn.ReLU(),
        nn.Dropout(), nn.Linear(32, 10),
    )  # fmt: skip


class Ghost(nn.Module):
    """Half of the channels by a convolution, half from those by a depthwise one."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.primary, self.cheap = conv_bn(c, c // 2, act=nn.ReLU()), conv_bn(c // 2, c // 2, 3, 1, c // 2, nn.ReLU())
        self.channels = c - 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        joined = torch.cat([y, self.cheap(y)], 1)[:, : self.channels]
        return x + F.pad(joined, [0, 0, 0, 0, 0, 2])


def ghostnet() -> nn.Module:
    return nn.Sequential(stem(16), Ghost(16), Ghost(16), Head(16))


class Shuffle(nn.Module):
    """ShuffleNetV2: split, one branch, join, channel shuffle written with the sizes of the tensor."""

    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.branch = nn.Sequential(conv_bn(h, h, act=nn.ReLU()), conv_bn(h, h, 3, g=h), conv_bn(h, h, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(stem(16), Shuffle(16), Shuffle(16), Head(16))


class Partial(nn.Module):
    """FasterNet: a convolution of a quarter of the channels, then a perceptron."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(c // 4, c // 4, 3, padding=1, bias=False), c // 4
        self.mlp = nn.Sequential(conv_bn(c, 2 * c, act=nn.GELU()), nn.Conv2d(2 * c, c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [self.part, x.shape[1] - self.part], dim=1)
        return x + self.mlp(torch.cat([self.conv(a), b], 1))


def fasternet() -> nn.Module:
    return nn.Sequential(stem(16), Partial(16), Partial(16), Head(16))


class Star(nn.Module):
    """StarNet: the product of two branches."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, 2 * c, 1)
        self.depthwise, self.out = conv_bn(c, c, 7, g=c), conv_bn(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        return x + self.out(F.relu6(self.first(y)) * self.second(y))


def starnet() -> nn.Module:
    return nn.Sequential(stem(16, nn.ReLU6()), Star(16), Star(16), Head(16))


CONVOLUTIONAL = {
    f.__name__: f
    for f in (
        resnet, resnext, se_resnet, regnet, mobilenet_v2, mobilenet_v3, mobilenet_v4, efficientnet, repvgg, densenet,
        vgg, ghostnet, shufflenet_v2, fasternet, starnet,
    )
}  # fmt: skip
