"""Multiply-adds against numbers made by hand, and against loops that count."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fullquant.graph.multiply_adds import at_batch_one, multiply_add_kind, multiply_adds
from fullquant.passes.infer_shapes import infer_shapes
from tests.graphs import graph


def counted(op: str, shape: tuple[Any, ...], weight: tuple[int, ...], **attributes: Any) -> tuple[int | None, str]:
    model = graph([(op, ["x", "w"], ["y"], attributes)], {"w": np.zeros(weight, np.float32)}, input_shape=shape)
    single = at_batch_one(model)
    infer_shapes(single)
    (node,) = single.graph
    return multiply_adds(node), multiply_add_kind(node)


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes", "expected", "kind"),
    [
        ("Conv", ("N", 3, 8, 8), (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}, 8 * 8 * 8 * 27, "Conv"),
        ("Conv", ("N", 3, 8, 8), (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 8 * 4 * 4 * 27, "Conv"),
        ("Conv", ("N", 3, 9, 9), (8, 3, 3, 3), {"dilations": [2, 2]}, 8 * 5 * 5 * 27, "Conv"),
        ("Conv", ("N", 8, 6, 6), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}, 8 * 36 * 9, "Conv depthwise"),
        ("Conv", ("N", 8, 6, 6), (12, 4, 1, 1), {"group": 2}, 12 * 36 * 4, "Conv"),
        ("Conv", (4, 3, 8, 8), (8, 3, 3, 3), {}, 4 * 8 * 36 * 27, "Conv"),
        ("ConvTranspose", ("N", 6, 5, 5), (6, 4, 3, 3), {"strides": [2, 2]}, 6 * 25 * 4 * 9, "ConvTranspose"),
        ("ConvTranspose", ("N", 6, 5, 5), (6, 4, 2, 2), {"group": 3}, 6 * 25 * 4 * 4, "ConvTranspose"),
        ("Gemm", ("N", 10), (10, 7), {}, 70, "Gemm"),
        ("Gemm", ("N", 10), (7, 10), {"transB": 1}, 70, "Gemm"),
        ("MatMul", ("N", 4, 5, 6), (6, 7), {}, 4 * 5 * 6 * 7, "MatMul"),
        ("MatMul", ("N", 4, 5, 6), (4, 6, 3), {}, 4 * 5 * 6 * 3, "MatMul"),
        ("Conv", ("N", 3, "H", "W"), (8, 3, 3, 3), {}, None, "Conv"),
    ],
)  # fmt: skip
def test_by_hand(op, shape, weight, attributes, expected, kind) -> None:
    assert counted(op, shape, weight, **attributes) == (expected, kind)


def test_grouped_convolution_against_loops() -> None:
    """Every output position, output channel and channel of its group, one product for each element of the kernel."""
    channels, outputs, group, size, kernel, stride = 6, 9, 3, 7, 3, 2
    found, _ = counted(
        "Conv", ("N", channels, size, size), (outputs, channels // group, kernel, kernel), group=group,
        strides=[stride, stride],
    )  # fmt: skip
    positions = range(0, size - kernel + 1, stride)
    loops = sum(1 for _ in product(positions, positions, range(outputs), range(channels // group), range(kernel**2)))
    assert found == loops


def test_transposed_convolution_scatters_every_input() -> None:
    """x[c] adds to each output channel of its group, for each element of the kernel."""
    channels, per_group, group, size, kernel = 4, 3, 2, 5, 2
    found, _ = counted("ConvTranspose", ("N", channels, size, size), (channels, per_group, kernel, kernel), group=group)
    assert found == sum(1 for _ in product(range(channels), range(size**2), range(per_group), range(kernel**2)))


def test_what_is_not_counted() -> None:
    model = graph([("Relu", ["x"], ["y"], {})], {})
    assert multiply_adds(next(iter(model.graph))) == 0
