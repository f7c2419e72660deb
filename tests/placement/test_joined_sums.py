"""Which sums a convolution computes, on the target whose passes join them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.placement.joined_sums import joined_sums
from fullquant.placement.place import PlacementOptions, place
from tests.graph.toy_models import parse

_HEAD = "g (float[N,4,8,8] x, float[4,4,1,1] v, float[4,4,1,1] w, float[4,4,1,1] u) => (float y) {"
_CASES = {
    "a residual": ("a = Conv(x, v) b = Conv(a, w) s = Add(b, x)", {"b"}),
    "in the other order": ("a = Conv(x, v) b = Conv(a, w) s = Add(x, b)", {"b"}),
    "a projection": ("a = Conv(x, v) b = Conv(a, w) p = Conv(x, u) s = Add(b, p)", {"b"}),
    "a projection in the other order": ("a = Conv(x, v) b = Conv(a, w) p = Conv(x, u) s = Add(p, b)", {"b"}),
    "two of one tensor": ("a = Conv(x, v) b = Conv(x, w) s = Add(a, b)", set()),
    "its own input": ("a = Conv(x, v) s = Add(a, x)", set()),
    "a second reader": ("a = Conv(x, v) b = Conv(a, w) t = Relu(b) s0 = Add(b, x) s = Add(s0, t)", set()),
    "an activation in between": ("a = Conv(x, v) b = Conv(a, w) t = Relu(b) s = Add(t, x)", set()),
    "a shortcut of its own": ("a = Conv(x, v) b = Conv(a, w) n = Neg(x) s = Add(b, n)", set()),
    "a constant": ("a = Conv(x, v) b = Conv(a, w) s = Add(b, u)", set()),
    "another shape": ("a = Conv(x, v) b = Conv(a, w) p = GlobalAveragePool(x) s = Add(b, p)", set()),
}


def shaped(body: str) -> ir.Model:
    model = parse(f"{_HEAD} {body} y = Relu(s) }}")
    infer_shapes(model)
    return model


@pytest.mark.parametrize("case", _CASES)
def test_patterns(case: str) -> None:
    body, expected = _CASES[case]
    model = shaped(body)
    assert set(joined_sums(model.graph, lambda node: True)) == expected


def test_the_sum_is_rounded_once_behind_its_activation() -> None:
    model = shaped(_CASES["a residual"][0])
    placement = place(model, "paddle_inference")
    assert [placement[name].fused for name in "abs"] == [False, True, True]
    assert {placement.scale_owner(name) for name in "bsy"} == {"y"}
    assert "computes the sum behind it" in placement["b"].reason
    assert not place(model, "paddle_lite")["b"].fused


def test_a_float_sum_is_joined_with_nothing() -> None:
    model = shaped(_CASES["a residual"][0])
    name = next(str(node.name) for node in model.graph if node.op_type == "Add")
    placement = place(model, "paddle_inference", PlacementOptions(skip_nodes=frozenset({name})))
    assert not placement["b"].fused
