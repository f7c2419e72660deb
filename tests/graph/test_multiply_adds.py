"""Multiply-adds against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from fullquant.graph.multiply_adds import at_batch_one, multiply_add_kind, multiply_adds

Shape = tuple[int | str, ...]


def _node(kind: str, first: Shape, second: Shape, result: Shape, **attributes: Any) -> ir.Node:
    values = [ir.Value(name=name, shape=ir.Shape(shape)) for name, shape in (("x", first), ("w", second))]
    node = ir.node(kind, values, attributes=attributes)
    node.outputs[0].shape = ir.Shape(result)
    return node


@pytest.mark.parametrize(
    ("node", "expected", "kind"),
    [
        # 16 x 112 x 112 outputs, each 3 channels of 3x3
        (_node("Conv", (1, 3, 224, 224), (16, 3, 3, 3), (1, 16, 112, 112), strides=[2, 2]), 5_419_008, "Conv"),
        # groups: each output reads 8 / 2 channels
        (_node("Conv", (1, 8, 10, 10), (6, 4, 1, 1), (1, 6, 10, 10), group=2), 2400, "Conv"),
        (_node("Conv", (1, 8, 10, 10), (8, 1, 5, 5), (1, 8, 10, 10), group=8), 20_000, "Conv depthwise"),
        # a dilated kernel has as many weights
        (_node("Conv", (2, 3, 20, 20), (4, 3, 3, 3), (2, 4, 16, 16), dilations=[2, 2]), 55_296, "Conv"),
        # every one of 4 x 5 x 5 inputs meets 6 outputs of 2x2
        (_node("ConvTranspose", (1, 4, 5, 5), (4, 6, 2, 2), (1, 6, 10, 10), strides=[2, 2]), 2400, "ConvTranspose"),
        (
            _node("ConvTranspose", (1, 4, 5, 5), (4, 3, 2, 2), (1, 6, 10, 10), strides=[2, 2], group=2),
            1200,
            "ConvTranspose",
        ),
        (_node("Gemm", (2, 30), (30, 7), (2, 7)), 420, "Gemm"),
        (_node("Gemm", (2, 30), (7, 30), (2, 7), transB=1), 420, "Gemm"),
        (_node("Gemm", (30, 2), (30, 7), (2, 7), transA=1), 420, "Gemm"),
        # attention: 4 heads, 49 queries by 49 keys of 16
        (_node("MatMul", (1, 4, 49, 16), (1, 4, 16, 49), (1, 4, 49, 49)), 153_664, "MatMul"),
        (_node("Add", (1, 4), (1, 4), (1, 4)), 0, "Add"),
        (_node("Conv", ("N", 3, "H", 8), (4, 3, 1, 1), ("N", 4, "H", 8)), None, "Conv"),
    ],
)
def test_by_hand(node: ir.Node, expected: int | None, kind: str) -> None:
    assert multiply_adds(node) == expected
    assert multiply_add_kind(node) == kind


def test_one_image_of_a_free_batch() -> None:
    graph = ir.Graph([ir.Value(name="x", shape=ir.Shape(["N", 3, 8, "W"]))], [], nodes=[])
    copy = at_batch_one(ir.Model(graph, ir_version=10))
    assert [str(size) for size in copy.graph.inputs[0].shape or ()] == ["1", "3", "8", "W"]
    assert str(graph.inputs[0].shape[0]) == "N"  # type: ignore[index]
