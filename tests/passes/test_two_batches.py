"""Values that depend on the batch alone: as_strided, sizes of a Resize, rows that are the same for every image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.graph.edit import attribute_ints, ints_constant
from fullquant.passes import run_passes
from fullquant.passes.fold_shape_arithmetic import fold_shape_arithmetic
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "first": np.int64([0]), "axes": np.int64([1, 2, 3])}


def rewrite(model: ir.Model) -> int:
    count = 0
    while True:
        infer_shapes(model)
        found = fold_shape_arithmetic(model)
        if not found:
            return count
        count += found


def strided(offsets: np.ndarray, stride: int) -> ir.Model:
    """as_strided of a [N, 12, 1, 1] tensor, as PyTorch's exporter writes it."""
    return parse(
        f"g (float[N,12,1,1] x) => (float[N,{','.join(map(str, offsets.shape[1:]))}] y) "
        "{ s = Shape <start = 0, end = 1> (x)  n = Squeeze(s, first)  r = Range(zero, n, one)  m = Mul(r, stride)  "
        "u = Unsqueeze(m, axes)  i = Add(u, offsets)  v = Reshape(x, flat)  y = Gather <axis = 0> (v, i) }",
        **NUMBERS, stride=np.int64(stride), offsets=offsets, flat=np.int64([-1]),
    )  # fmt: skip


def test_as_strided_of_the_same_shape_is_a_reshape() -> None:
    model = strided(np.arange(12).reshape(1, 12, 1, 1), 12)
    assert check(rewrite, model) > 0
    assert operators(model) == ["Reshape"]


def test_as_strided_with_other_offsets_gathers_from_each_image() -> None:
    model = strided(np.int64([0, 1, 2, 6, 7, 8]).reshape(1, 2, 3, 1), 12)
    assert check(rewrite, model) > 0
    assert operators(model) == ["Reshape", "Gather"]
    (gather,) = [n for n in model.graph if n.op_type == "Gather"]
    assert ints_constant(gather.inputs[1]) == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("stride", [1, 6, 11])
def test_strides_across_images_are_left_alone(stride: int) -> None:
    """Image n would read from the image in front of it."""
    model = strided(np.arange(12).reshape(1, 12, 1, 1), stride)
    infer_shapes(model)
    fold_shape_arithmetic(model)
    assert "Gather" in operators(model)
    assert "Range" in operators(model)


def test_a_resize_to_computed_sizes_names_its_axes() -> None:
    model = parse(
        "g (float[N,3,4,6] x) => (float[N,3,8,9] y) { s = Shape <start = 0, end = 2> (x)  "
        't = Concat <axis = 0> (s, hw)  y = Resize <mode = "linear"> (x, , , t) }', hw=np.int64([8, 9]),
    )  # fmt: skip
    assert check(rewrite, model) == 1
    (node,) = model.graph
    assert attribute_ints(node, "axes", []) == [2, 3]
    assert ints_constant(node.inputs[3]) == [8, 9]


ROWS = (
    "s = Shape <start = 0, end = 1> (x)  t = Concat <axis = 0> (s, rest)  z = ConstantOfShape(t)  "
    "f = Add(z, ramp)  g = Sin(f)  "
)


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("y = Add(x, g)", ["Add"]), ("y = Mul(g, x)", ["Mul"]),
        ("y = MatMul(g, x)", ["MatMul"]),
        ("y = Concat <axis = 1> (x, g)", ["Shape", "Concat", "Expand", "Concat"]),
    ],
)  # fmt: skip
def test_rows_that_every_image_shares_are_held_once(tail: str, left: list[str]) -> None:
    model = parse(
        f"g (float[N,4,4] x) => (float[N,a,4] y) {{ {ROWS}{tail} }}", rest=np.int64([4, 4]),
        ramp=np.arange(16, dtype=np.float32).reshape(4, 4),
    )  # fmt: skip
    assert check(rewrite, model) > 0
    assert operators(model) == left
    assert rewrite(model) == 0


def test_rows_for_two_readers() -> None:
    model = parse(
        f"g (float[N,4,4] x) => (float[N,8,4] y) {{ {ROWS} a = Add(x, g)  y = Concat <axis = 1> (a, g) }}",
        rest=np.int64([4, 4]), ramp=np.ones((4, 4), np.float32),
    )  # fmt: skip
    assert check(rewrite, model) > 0
    assert sorted(operators(model)) == ["Add", "Concat", "Concat", "Expand", "Shape"]


def test_rows_that_differ_between_images_stay() -> None:
    model = parse(
        "g (float[N,4] x) => (float[N,4] y) { s = Shape <start = 0, end = 1> (x)  n = Squeeze(s, first)  "
        "r = Range(zero, n, one)  c = Cast <to = 1> (r)  u = Unsqueeze(c, last)  y = Add(x, u) }",
        **NUMBERS, last=np.int64([1]),
    )  # fmt: skip
    assert check(rewrite, model) == 0
    assert "Range" in operators(model)


def test_the_pipeline_folds_them_too() -> None:
    model = parse(
        f"g (float[N,4,4] x) => (float[N,4,4] y) {{ {ROWS} y = Add(x, g) }}", rest=np.int64([4, 4]),
        ramp=np.ones((4, 4), np.float32),
    )  # fmt: skip
    assert check(lambda m: sum(r.count for r in run_passes(m)), model) > 0
    assert operators(model) == ["Add"]
