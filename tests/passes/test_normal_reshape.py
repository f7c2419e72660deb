"""Reshapes become static for any batch; shapes computed from shapes are followed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.graph.edit import ints_constant
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_reshape import normal_reshape, shape_elements
from fullquant.passes.remove_unused import remove_unused
from tests.graph.toy_models import check, operators, parse


def rewrite(model: ir.Model) -> int:
    """The pass with the ones that it works with."""
    count = normal_reshape(model)
    return count + remove_unused(model)


def test_paddles_flatten_of_an_unknown_batch() -> None:
    """shape -> slice -> fill_constant -> reshape2 as in PaddleOCR's classifier, height and width unknown."""
    model = parse(
        "g (float[N,6,H,W] x) => (float y) { p = GlobalAveragePool(x)  s = Shape(p)  i = Cast <to = 6> (s) "
        "n = Slice(i, start, end)  c = Concat <axis = 0> (n, width)  t = Cast <to = 7> (c)  y = Reshape(p, t) }",
        start=np.int64([0]),
        end=np.int64([1]),
        width=np.int32([6]),
    )
    infer_shapes(model)
    check(rewrite, model, {"H": 3, "W": 5})
    assert operators(model) == ["GlobalAveragePool", "Flatten"]


def test_pytorchs_flatten_of_an_unknown_batch() -> None:
    """x.view(x.size(0), -1): Shape -> Gather -> Unsqueeze -> Concat -> Reshape."""
    model = parse(
        "g (float[N,3,4,4] x) => (float y) { s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axes) "
        "c = Concat <axis = 0> (u, rest)  y = Reshape(x, c) }",
        zero=np.int64(0),
        axes=np.int64([0]),
        rest=np.int64([-1]),
    )
    check(rewrite, model)
    assert operators(model) == ["Flatten"]


@pytest.mark.parametrize(
    ("sizes", "target", "expected"),
    [
        ("N,6,1,1", [-1, 6], ["Flatten"]),
        ("N,6,1,1", [0, 6], ["Flatten"]),
        ("N,6,2,2", [0, -1], ["Flatten"]),
        ("N,6,2,2", [-1, 24], ["Flatten"]),
        ("N,6,2,2", [-1, 6, 4], [0, 6, 4]),
        ("N,6,2,2", [0, 0, -1], None),
        ("N,6,2,2", [0, 6, 2, 2], None),
        ("N,6", [-1, 6, 1, 1], [0, 6, 1, 1]),
        ("N,6", [-1, 2], None),
        ("N,6", [0, 2, 3], None),
    ],
)
def test_constant_targets(sizes: str, target: list[int], expected: list[object] | None) -> None:
    model = parse(f"g (float[{sizes}] x) => (float y) {{ y = Reshape(x, t) }}", t=np.int64(target))
    changed = check(rewrite, model)
    assert bool(changed) == (expected is not None)
    node = next(iter(model.graph))
    if expected == ["Flatten"]:
        assert node.op_type == "Flatten"
    else:
        assert ints_constant(node.inputs[1]) == (target if expected is None else expected)


def test_a_fixed_batch_is_freed() -> None:
    """Exported with batch 1: [1, 6] in front of an [N, 6, 1, 1] can mean nothing but N = 1, so any N may replace it."""
    model = parse("g (float[N,6,1,1] x) => (float y) { y = Reshape(x, t) }", t=np.int64([1, 6]))
    assert normal_reshape(model) == 1
    assert operators(model) == ["Flatten"]
    model = parse("g (float[1,6,1,1] x) => (float y) { y = Reshape(x, t) }", t=np.int64([1, 6]))
    assert normal_reshape(model) == 1


@pytest.mark.parametrize(
    ("sizes", "body", "constants", "expected"),
    [
        ("N,6,1,1", "y = Squeeze(x, axes)", {"axes": [2, 3]}, "Flatten"),
        ("N,6,1,1", "y = Squeeze(x, axes)", {"axes": [-1, -2]}, "Flatten"),
        ("N,6,1,1", "y = Squeeze(x, axes)", {"axes": [3]}, "Squeeze"),
        ("N,1,6", "y = Squeeze(x, axes)", {"axes": [1]}, "Squeeze"),
        ("N,6,2,2", "y = Flatten(x)", {}, "Flatten"),
        ("N,6,2,2", "y = Flatten <axis = -3> (x)", {}, "Flatten"),
        ("N,6,2,2", "y = Flatten <axis = 2> (x)", {}, "Flatten"),
    ],
)
def test_squeeze_and_flatten(sizes: str, body: str, constants: dict[str, list[int]], expected: str) -> None:
    arrays = {name: np.int64(value) for name, value in constants.items()}
    model = parse(f"g (float[{sizes}] x) => (float y) {{ {body} }}", **arrays)
    check(rewrite, model)
    assert operators(model) == [expected]


def test_targets_that_stay_dynamic() -> None:
    two_unknown = parse(
        "g (float[N,4,H,W] x) => (float y) { s = Shape <start = 2> (x)  r = Slice(s, a, b, z, m) "
        "t = Concat <axis = 0> (n, r)  y = Reshape(x, t) }",
        a=np.int64([1]),
        b=np.int64([-9]),
        z=np.int64([0]),
        m=np.int64([-1]),
        n=np.int64([0, 4]),
    )
    assert check(rewrite, two_unknown, {"H": 2, "W": 3}) == 0
    computed = parse(
        "g (float[N,4] x) => (float y) { r = ReduceMax(x)  i = Cast <to = 7> (r)  t = Mul(i, z)  u = Reshape(t, o) "
        "c = Concat <axis = 0> (m, u)  y = Reshape(x, c) }",
        z=np.int64(0),
        o=np.int64([1]),
        m=np.int64([-1]),
    )
    infer_shapes(computed)
    assert check(rewrite, computed) == 0
    empty = parse("g (float[N,4] x) => (float y) { y = Reshape <allowzero = 1> (x, t) }", t=np.int64([0, 4]))
    assert rewrite(empty) == 0


def test_zeros_that_are_not_there() -> None:
    """PyTorch's exporter writes allowzero = 1 always; without zeros it says nothing."""
    model = parse("g (float[N,6,2,2] x) => (float y) { y = Reshape <allowzero = 1> (x, t) }", t=np.int64([-1, 3, 8]))
    assert check(rewrite, model) > 0
    assert not next(iter(model.graph)).attributes


@given(start=st.integers(-4, 4), end=st.integers(-4, 5), step=st.integers(1, 3), index=st.integers(-4, 3))
@settings(max_examples=30, deadline=None)
def test_elements_of_shapes(start: int, end: int, step: int, index: int) -> None:
    model = parse(
        "g (float[N,3,H,5] x) => (float y) { s = Shape(x)  c = Slice(s, a, b, z, t)  g1 = Gather(s, i) "
        "u = Unsqueeze(g1, z)  k = Concat <axis = 0> (c, u)  y = Cast <to = 1> (k) }",
        a=np.int64([start]),
        b=np.int64([end]),
        t=np.int64([step]),
        z=np.int64([0]),
        i=np.int64(index),
    )
    sizes = ["N", 3, "H", 5]
    concat = next(node for node in model.graph if node.op_type == "Concat")
    assert shape_elements(concat.outputs[0]) == [*sizes[start:end:step], sizes[index]]
    assert shape_elements(model.graph.inputs[0]) is None


def test_channel_shuffle_of_an_unknown_batch() -> None:
    """ShuffleNetV2 from PaddlePaddle 2.6: the batch size is a scalar that is reshaped to a vector for each Concat."""
    model = parse(
        "g (float[N,6,2,2] x) => (float y) { s = Shape(x)  i = Cast <to = 6> (s)  p = Slice(i, start, end) "
        "n = Squeeze(p, axis)  c = Cast <to = 7> (n)  v = Reshape(c, one)  t = Concat <axis = 0> (v, five) "
        "r = Reshape(x, t)  m = Transpose <perm = [0, 2, 1, 3, 4]> (r)  u = Concat <axis = 0> (v, four) "
        "y = Reshape(m, u) }",
        start=np.int64([0]),
        end=np.int64([1]),
        axis=np.int64([0]),
        one=np.int64([1]),
        five=np.int64([2, 3, 2, 2]),
        four=np.int64([6, 2, 2]),
    )
    infer_shapes(model)
    check(rewrite, model)
    assert operators(model) == ["Reshape", "Transpose", "Reshape"]


@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), kind=st.sampled_from(["Add", "Sub", "Mul"]))
def test_arithmetic_of_sizes(sizes: tuple[int, int], kind: str) -> None:
    """Known sizes are computed, with one element for all; of the unknown batch nothing but n * 1 and multiples."""
    height, width = sizes
    model = parse(
        f"g (float[N,{height},{width}] x, int64[2] k) => (int64 y, int64 z) {{ s = Shape(x)  h = Slice(s, one, three) "
        f"w = Slice(s, two, three)  y = {kind}(h, w)  n = Slice(s, zero, one)  z = {kind}(n, w) }}",
        zero=np.int64([0]),
        one=np.int64([1]),
        two=np.int64([2]),
        three=np.int64([3]),
    )
    compute = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[kind]
    expected, unknown = (shape_elements(value) for value in model.graph.outputs)
    assert expected == compute(np.int64(sizes), width).tolist()
    assert unknown is not None
    assert isinstance(unknown[0], str) if kind == "Mul" else unknown == [None]
    assert width != 1 or kind != "Mul" or unknown == ["N"]
