"""Pad folds into its readers where they give the same numbers, and stays otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes.fold_pad import fold_pad
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

HEADER = "g (float[N,4,7,6] x, float[6,4,3,3] w, float[6] k) => (float y)"


@given(
    outer=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    inner=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    stride=st.integers(1, 2),
)
@settings(max_examples=20, deadline=None)
def test_into_a_convolution(outer: list[int], inner: list[int], stride: int) -> None:
    """TensorFlow's SAME with stride 2 arrives like this: [0, 1, 0, 1] in front of an unpadded convolution."""
    model = parse(
        f"{HEADER} {{ p = Pad(x, pads)  y = Conv <pads = {inner}, strides = [{stride},{stride}]> (p, w, k) }}",
        pads=np.int64([0, 0, *outer[:2], 0, 0, *outer[2:]]),
    )
    infer_shapes(model)
    assert check(fold_pad, model) == 1
    assert operators(model) == ["Conv"]


def test_axes_and_several_readers() -> None:
    body = "p = Pad(x, pads, zero, axes)  a = Conv(p, w)  b = Conv(p, w, k)  y = Add(a, b)"
    model = parse(f"{HEADER} {{ {body} }}", pads=np.int64([1, 2, 0, 1]), zero=np.float32(0), axes=np.int64([-1, 2]))
    infer_shapes(model)
    assert check(fold_pad, model) == 1
    assert operators(model) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    ("front", "pads", "pooling", "fill"),
    [
        ("a = Tanh(x)", [1, 2, 1, 2], "AveragePool <kernel_shape = [3,3]>", 0.0),
        (
            "a = Tanh(x)", [0, 1, 1, 1],
            "AveragePool <kernel_shape = [3,3], pads = [1,0,0,0], count_include_pad = 1>", 0.0,
        ),
        ("a = Tanh(x)", [1, 0, 1, 1], "MaxPool <kernel_shape = [3,3], strides = [2,2]>", -math.inf),
        ("a = Relu(x)", [1, 0, 1, 1], "MaxPool <kernel_shape = [3,3]>", 0.0),
        ("b = Sigmoid(x)  a = MaxPool <kernel_shape = [2,2]> (b)", [1, 0, 1, 1], "MaxPool <kernel_shape = [3,3]>", 0.0),
    ],
)  # fmt: skip
def test_into_pooling(front: str, pads: list[int], pooling: str, fill: float) -> None:
    model = parse(
        f"{HEADER} {{ {front}  p = Pad(a, pads, fill)  y = {pooling} (p) }}",
        pads=np.int64([0, 0, *pads[:2], 0, 0, *pads[2:]]),
        fill=np.float32(fill),
    )
    infer_shapes(model)
    assert check(fold_pad, model) == 1
    assert "Pad" not in operators(model)


@settings(max_examples=20, deadline=None)
@given(pads=st.lists(st.integers(0, 3), min_size=4, max_size=4), kernel=st.integers(2, 3), stride=st.integers(1, 3))
def test_a_repeated_border_into_max_pooling(pads: list[int], kernel: int, stride: int) -> None:
    """PyTorch ports of TensorFlow's SAME have it: Pad(mode="edge") in front of a MaxPool."""
    model = parse(
        f'{HEADER} {{ a = Tanh(x)  p = Pad <mode = "edge"> (a, pads)  '
        f"y = MaxPool <kernel_shape = [{kernel},{kernel}], strides = [{stride},{stride}]> (p) }}",
        pads=np.int64([0, 0, *pads[:2], 0, 0, *pads[2:]]),
    )
    infer_shapes(model)
    assert check(fold_pad, model) == (max(pads) < kernel)


def test_a_repeated_border_stays_where_windows_have_gaps_or_average() -> None:
    for pooling in ("MaxPool <kernel_shape = [3,3], dilations = [2,2]>", "AveragePool <kernel_shape = [3,3]>"):
        model = parse(
            f'{HEADER} {{ p = Pad <mode = "edge"> (x, pads)  y = {pooling} (p) }}',
            pads=np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
        )
        infer_shapes(model)
        assert check(fold_pad, model) == 0


@pytest.mark.parametrize(
    ("pads", "fill", "tail"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.5, "y = Conv(p, w)"),
        ([0, 1, 1, 1, 0, 0, 1, 1], 0.0, "y = GlobalAveragePool(p)"),
        ([0, 0, 1, 1, 0, 0, 1, -1], 0.0, "y = Conv(p, w)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "a = Conv(p, w)  b = GlobalAveragePool(p)  c = Conv(b, v)  y = Add(a, c)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "y = MaxPool <kernel_shape = [3,3]> (p)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (p)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "y = AveragePool <kernel_shape = [3,3], ceil_mode = 1> (p)"),
        ([0, 0, 1, 0, 0, 0, 1, 1], 0.0, "y = AveragePool <kernel_shape = [3,3]> (p)"),
        ([0, 0, 3, 3, 0, 0, 1, 1], 0.0, "y = AveragePool <kernel_shape = [3,3]> (p)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "y = Tanh(p)"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, 'y = Conv <auto_pad = "SAME_UPPER"> (p, w)'),
    ],
)
def test_padding_that_stays(pads: list[int], fill: float, tail: str) -> None:
    model = parse(
        f"g (float[N,4,7,6] x, float[6,4,3,3] w, float[6,4,1,1] v) => (float y) {{ p = Pad(x, pads, fill)  {tail} }}",
        pads=np.int64(pads),
        fill=np.float32(fill),
    )
    infer_shapes(model)
    assert check(fold_pad, model) == 0


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_modes_stay(mode: str) -> None:
    model = parse(
        f'{HEADER} {{ p = Pad <mode = "{mode}"> (x, pads)  y = Conv(p, w) }}', pads=np.int64([0, 0, 1, 1] * 2)
    )
    infer_shapes(model)
    assert check(fold_pad, model) == 0


def test_a_padded_output_stays() -> None:
    model = parse(f"{HEADER} {{ y = Pad(x, pads) }}", pads=np.int64([0, 0, 1, 1] * 2))
    infer_shapes(model)
    assert check(fold_pad, model) == 0
