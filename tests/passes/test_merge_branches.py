"""Parallel convolutions whose outputs are added become one where that is exact, and nowhere else."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.merge_branches import merge_branches
from fullquant.passes.remove_unused import remove_unused
from tests.graph.toy_models import check, operators, parse


def rewrite(model: ir.Model) -> int:
    """The pass, and what is left of the branches goes."""
    return merge_branches(model) + 0 * remove_unused(model)


def conv(kernel: tuple[int, int], pads: list[int], group: int, stride: int) -> str:
    return f"Conv <kernel_shape = {list(kernel)}, pads = {pads}, group = {group}, strides = [{stride}, {stride}]>"


@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    frame=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    pads=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    group=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 2),
    biases=st.tuples(st.booleans(), st.booleans()),
    swapped=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_kernels_that_lie_on_each_other(
    size: tuple[int, int], frame: list[int], pads: list[int], group: int, stride: int, biases: tuple[bool, bool],
    swapped: bool,
) -> None:  # fmt: skip
    """Any frame around the smaller kernel, also one-sided; any group, stride and bias; either order of the sum."""
    top, left, bottom, right = frame
    large = (size[0] + top + bottom, size[1] + left + right)
    outer = [inner + extra for inner, extra in zip(pads, frame, strict=True)]
    model = parse(
        f"g (float[N,4,8,8] x, float[4,{4 // group},{large[0]},{large[1]}] v, "
        f"float[4,{4 // group},{size[0]},{size[1]}] w, float[4] b, float[4] c) => (float y) {{ "
        f"p = {conv(large, outer, group, stride)} (x, v{', b' * biases[0]}) "
        f"q = {conv(size, pads, group, stride)} (x, w{', c' * biases[1]})  y = Add({'q, p' if swapped else 'p, q'}) }}"
    )
    infer_shapes(model)
    assert check(rewrite, model) == 1
    assert operators(model) == ["Conv"]


def test_three_branches() -> None:
    """PPLCNetV2: 5x5 + 3x3 + 1x1 depthwise, one merge after the other."""
    model = parse(
        "g (float[N,4,8,8] x, float[4,1,5,5] u, float[4,1,3,3] v, float[4,1,1,1] w) => (float y) {"
        f" p = {conv((5, 5), [2] * 4, 4, 1)} (x, u)  q = {conv((3, 3), [1] * 4, 4, 1)} (x, v)"
        f" r = {conv((1, 1), [0] * 4, 4, 1)} (x, w)  s = Add(p, q)  y = Add(s, r) }}"
    )
    infer_shapes(model)
    assert check(rewrite, model) == 2
    assert operators(model) == ["Conv"]


@pytest.mark.parametrize(
    "second",
    [
        conv((3, 3), [1] * 4, 1, 1) + " (z, w)",  # another tensor
        "Conv <kernel_shape = [3, 3], pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w)",
    ],
)
def test_others_stay(second: str) -> None:
    model = parse(
        "g (float[N,4,8,8] x, float[4,4,3,3] v, float[4,4,3,3] w) => (float y) {"
        f" z = Relu(x)  p = {conv((3, 3), [1] * 4, 1, 1)} (x, v)  q = {second}  t = Relu(z) "
        " a = Add(p, q)  y = Add(a, t) }"
    )
    infer_shapes(model)
    assert check(rewrite, model) == 0


def test_a_branch_with_another_reader_stays() -> None:
    model = parse(
        "g (float[N,4,8,8] x, float[4,4,3,3] v, float[4,4,3,3] w) => (float y) {"
        f" p = {conv((3, 3), [1] * 4, 1, 1)} (x, v)  q = {conv((3, 3), [1] * 4, 1, 1)} (x, w)"
        "  a = Add(p, q)  y = Mul(a, p) }"
    )
    infer_shapes(model)
    assert check(rewrite, model) == 0
