"""Small transformers and their relatives in plain PyTorch, built as timm builds them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value; an optional bias on the scores."""

    def __init__(self, c: int, heads: int = 2, *, tokens: int = 0, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused, self.scale = heads, fused, (c // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens) * 0.3) if tokens else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            scores = scores if self.bias is None else scores + self.bias
            if mask is not None:
                windows = mask.shape[0]
                scores = scores.view(-1, windows, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
                scores = scores.view(-1, self.heads, n, n)
            y = scores.softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    """Pre-norm block with layer scale."""

    def __init__(self, c: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mixer = nn.LayerNorm(c), nn.LayerNorm(c), mixer
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * c, c))
        self.gamma = nn.Parameter(torch.rand(c) * 0.5 + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT; with a distillation token, and the mean of two classifiers, DeiT."""

    def __init__(self, c: int = 24, extra: int = 1, fused: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, c, 8, 8)
        self.tokens = nn.ParameterList([nn.Parameter(torch.randn(1, 1, c)) for _ in range(extra)])
        self.position = nn.Parameter(torch.randn(1, 16 + extra, c) * 0.5)
        self.blocks = nn.Sequential(*[Block(c, Attention(c, fused=fused)) for _ in range(2)])
        self.norm, self.heads = nn.LayerNorm(c), nn.ModuleList([nn.Linear(c, 10) for _ in range(extra)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self.tokens), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        results = [head(x[:, i]) for i, head in enumerate(self.heads)]
        return results[0] if len(results) == 1 else (results[0] + results[1]) / 2


def vit() -> nn.Module:
    return VisionTransformer()


def deit() -> nn.Module:
    return VisionTransformer(extra=2, fused=False)


class SwinBlock(nn.Module):
    """Window attention with relative position bias, shifted by a roll and masked."""

    mask: Tensor | None

    def __init__(self, c: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm, self.attention = nn.LayerNorm(c), Attention(c, tokens=window * window)
        mask = None
        if shift:
            areas = torch.zeros(size, size)
            for i, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                for j, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                    areas[rows, columns] = 3 * i + j
            n = size // window
            areas = areas.view(n, window, n, window).transpose(1, 2).reshape(n * n, -1)
            mask = (areas.unsqueeze(1) != areas.unsqueeze(2)).float() * -100.0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n, k = h // self.window, self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        y = y.view(b, n, k, n, k, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, k * k, c)
        y = self.attention(y, self.mask)
        y = y.view(-1, n, n, k, k, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, c)
        return x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)


class Permute(nn.Module):
    """A fixed order of the axes."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class MeanTokens(nn.Module):
    """The mean over everything between the batch and the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(tuple(range(1, x.ndim - 1)))


def swin() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), Permute(0, 2, 3, 1), nn.LayerNorm(16), SwinBlock(16, 8, 4, 0), SwinBlock(16, 8, 4, 2),
        nn.LayerNorm(16), MeanTokens(), nn.Linear(16, 10),
    )  # fmt: skip


class LayerNorm2d(nn.Module):
    """Over the channels of NCHW, written in parts, as the first ConvNeXt has it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer normalization by permutes, perceptron, layer scale."""

    def __init__(self, c: int, approximate: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(approximate=approximate), nn.Linear(2 * c, c))
        self.gamma = nn.Parameter(torch.rand(c) * 0.5 + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gamma * self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16), ConvNextBlock(16, "none"), LayerNorm2d(16), nn.Conv2d(16, 24, 2, 2),
        ConvNextBlock(24, "tanh"), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.LayerNorm(24), nn.Linear(24, 10),
    )  # fmt: skip


class Mixing(nn.Module):
    """MLP-Mixer: a perceptron over the tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


def mixer() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), Permute(0, 2, 1), Block(16, Mixing(16)), Block(16, Mixing(16)),
        nn.LayerNorm(16), MeanTokens(), nn.Linear(16, 10),
    )  # fmt: skip


class PoolMixer(nn.Module):
    """PoolFormer: average pooling minus the input, behind a group normalization of one group."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.pool = nn.GroupNorm(1, c), nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.pool(y) - y


def poolformer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 8, 8), PoolMixer(16), PoolMixer(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
                         nn.Linear(16, 10))  # fmt: skip


class Reduction(nn.Module):
    """PVT: keys and values from a smaller map."""

    def __init__(self, c: int, size: int) -> None:
        super().__init__()
        self.size, self.q, self.kv, self.proj = size, nn.Linear(c, c), nn.Linear(c, 2 * c), nn.Linear(c, c)
        self.reduce, self.norm = nn.Conv2d(c, c, 2, 2), nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, 2, c // 2).permute(0, 2, 1, 3)
        y = self.reduce(x.permute(0, 2, 1).reshape(b, c, self.size, self.size)).reshape(b, c, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(y)).reshape(b, -1, 2, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = ((q @ k.transpose(-2, -1)) * (c // 2) ** -0.5).softmax(dim=-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))


def pvt() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), Permute(0, 2, 1), Block(16, Reduction(16, 4)), nn.LayerNorm(16),
        MeanTokens(), nn.Linear(16, 10),
    )  # fmt: skip


class Unfold(nn.Module):
    """MobileViT: attention among the pixels at the same place of each patch."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.blocks = Block(c, Attention(c))
        self.conv = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        p = y.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2).reshape(b, c, h * w // 4, 4)
        p = self.blocks(p.transpose(1, 3).reshape(b * 4, -1, c))
        p = p.contiguous().view(b, 4, -1, c).transpose(1, 3).reshape(b * c * (h // 2), w // 2, 2, 2)
        return x + p.transpose(1, 2).reshape(b, c, h, w)


def mobilevit() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 8, 4, 2), Unfold(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
                         nn.Linear(16, 10))  # fmt: skip


TRANSFORMERS = {
    f.__name__: f for f in (vit, deit, swin, convnext, mixer, poolformer, pvt, mobilevit)
}  # fmt: skip
