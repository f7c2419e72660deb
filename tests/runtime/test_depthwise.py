"""The weight gradient of a depthwise 5x5 convolution equals PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fullquant.runtime.depthwise import depthwise5, takes


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [(2, 2), (0, 0), (1, 3)])
@pytest.mark.parametrize("size", [(12, 9), (5, 5), (6, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_torch(stride: int, padding: tuple[int, int], size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    found = []
    x = torch.randn(2, 67, *size).contiguous(memory_format=torch.channels_last)
    w, b = torch.randn(67, 1, 5, 5), torch.randn(67) if bias else None
    for ours in (True, False):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w)]
        shift = None if b is None else b.clone().requires_grad_()
        if ours:
            assert takes(leaves[0], leaves[1], (stride, stride), (1, 1), 67)
            y = depthwise5(leaves[0], leaves[1], shift, stride, padding, padding, [0] * 4)
        else:
            y = F.conv2d(leaves[0], leaves[1], shift, stride, padding, 1, 67)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves), *([] if shift is None else [shift.grad])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_other_convolutions_are_left_to_torch() -> None:
    x = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 1, 5, 5, requires_grad=True)
    same, one = (1, 1), (1, 1)
    assert takes(x, w, same, one, 64)
    assert not takes(x[:, :63].contiguous(memory_format=torch.channels_last), w[:63], same, one, 63)
    assert not takes(x.contiguous(), w, same, one, 64)
    assert not takes(x, torch.randn(64, 1, 3, 3, requires_grad=True), same, one, 64)
    assert not takes(x, torch.randn(64, 64, 5, 5, requires_grad=True), same, one, 1)
    assert not takes(x, w, (1, 2), one, 64)
    assert not takes(x, w, same, (2, 2), 64)
    assert not takes(x.double(), w.double(), same, one, 64)
    assert not takes(x, w.detach(), same, one, 64)
    with torch.no_grad():
        assert not takes(x, w, same, one, 64)
