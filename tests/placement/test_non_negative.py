"""Tensors that cannot be below 0, and the grid that they get where a target has one for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.numerics.qparams import QuantSpec
from fullquant.placement.non_negative import non_negative_tensors
from fullquant.placement.place import PlacementOptions, place
from tests.graph.toy_models import parse
from tests.graphs import small_classifier
from tests.writers.qdq_oracle import evaluate

UINT8, INT8 = QuantSpec(0, 255, symmetric=False), QuantSpec(-128, 127)
# operator on a signed x, on its ReLU r, on both -> whether the result is never below 0
CASES = {
    "HardSigmoid(x)": True, "Sigmoid(x)": True, "Softmax <axis = 1> (x)": True, "Exp(x)": True, "Relu(x)": True,
    "Clip(x, nil, six)": True, "Clip(x, six)": True, "Clip(x, low, six)": False, "Clip(r, low, six)": True,
    "Add(r, r)": True, "Add(r, x)": False, "Add(r, six)": True, "Add(r, low)": False, "Mul(r, r)": True,
    "Mul(x, r)": False, "Sub(r, r)": False, "HardSwish(x)": False, "HardSwish(r)": True, "Max(r, r)": True,
    "Concat <axis = 1> (r, r)": True, "Concat <axis = 1> (r, x)": False, "GlobalAveragePool(r)": True,
    "GlobalAveragePool(x)": False, "MaxPool <kernel_shape = [2,2]> (r)": True, "Pad(r, around)": True,
    "Pad(r, around, low)": False, "Pad(r, around, six)": True, "Flatten(r)": True, "Transpose(x)": False,
    "Conv(r, w)": False, "Tanh(r)": False,
}  # fmt: skip


def one(operation: str) -> ir.Model:
    constants = {"nil": np.float32(0), "six": np.float32(1), "low": np.float32(-1)}
    constants["around"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    used = {name: array for name, array in constants.items() if name in operation}
    text = f"g (float[N,3,4,4] x, float[2,3,1,1] w) => (float y) {{ r = Relu(x)  y = {operation} }}"
    return parse(text, **used)


@pytest.mark.parametrize(("operation", "expected"), CASES.items(), ids=CASES)
def test_operators(operation: str, expected: bool) -> None:
    assert ("y" in non_negative_tensors(one(operation).graph)) == expected


@given(name=st.sampled_from([name for name, kept in CASES.items() if kept]), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_what_is_claimed_holds(name: str, seed: int) -> None:
    model = one(name)
    x = (np.random.default_rng(seed).normal(size=(2, 3, 4, 4)) * 5).astype(np.float32)
    values = evaluate(model, x)
    for tensor in non_negative_tensors(model.graph):
        assert float(values[tensor].min()) >= 0, tensor


def test_a_whole_network() -> None:
    model = small_classifier()
    assert non_negative_tensors(model.graph) == {"r1", "r2", "p1", "r3", "h4", "se", "y"}


def test_openvino_gets_a_grid_without_zero_points() -> None:
    placement = place(small_classifier(), "openvino")
    grids = {d.tensor: d.spec for d in placement if d.kind == "activation"}
    unsigned = {"c1", "r1", "c2", "r2", "p1", "c3", "r3", "h4", "se", "y"}  # c1, c2, c3 lie inside a kernel
    assert {name for name, spec in grids.items() if spec == UINT8} == unsigned
    assert all(grids[name] == INT8 for name in set(grids) - unsigned)
    assert {d.spec for d in place(small_classifier(), "paddle_lite") if d.kind == "activation"} == {INT8}


def test_a_group_that_shares_a_scale_is_signed_if_one_of_it_is() -> None:
    model = parse("g (float[N,3,4,4] x) => (float y) { r = Relu(x)  c = Concat <axis = 1> (r, x)  y = Sigmoid(c) }")
    placement = place(model, "openvino")
    assert [placement[name].spec for name in ("x", "r", "c", "y")] == [INT8, INT8, INT8, UINT8]


@pytest.mark.parametrize("grid", ["short", "power_of_two"])
def test_short_scales(grid: str) -> None:
    placement = place(small_classifier(), "openvino", PlacementOptions(scale_grid=grid))  # type: ignore[arg-type]
    assert placement["r1"].spec is not None
    assert placement["r1"].spec.mantissas
    assert (placement["r1"].spec.qmin, placement["c5"].spec.qmin) == (0, -128)  # type: ignore[union-attr]


MOBILE = """g (float[N,3,8,8] x, float[8,3,3,3] w, float[8] b, float[8,8,1,1] v) => (float y) {
  c = Conv(x, w, b)  h = HardSwish(c)  d = Conv(h, v)  a = Add(d, h)  y = HardSwish(a)
}"""


def test_a_layer_computes_its_hard_swish_on_openvino_alone() -> None:
    there, elsewhere = place(parse(MOBILE), "openvino"), place(parse(MOBILE), "onnxruntime")
    assert there["c"].fused
    assert there["c"].shares == "h"
    assert "one kernel: rounded once, after the HardSwish" in there["c"].reason
    assert not any(there[name].fused for name in "hday")  # the Add is no layer
    assert not any(elsewhere[name].fused for name in "chday")


def test_a_pattern_keeps_the_function_out_of_the_kernel() -> None:
    placement = place(parse(MOBILE), "openvino", PlacementOptions(skip_patterns=("hardswish_1",)))
    assert not placement["c"].fused
    assert placement["c"].spec is None  # read by a float operator alone
