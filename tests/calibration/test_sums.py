"""Scales of sums are raised until integer kernels and the file round alike, and no further."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.calibration.sums import agreeing_sums, settle_sums
from fullquant.numerics.qparams import QParams, symmetric
from fullquant.numerics.sums import rounds_alike
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from fullquant.writers.onnx_qdq import build_onnx
from tests.graph.toy_models import feeds, parse, run
from tests.writers.qdq_oracle import calibrate

#: Two residual blocks: the first sum is an operand of the second; a clamp, a constant and a difference beside them.
CHAIN = """g (float[N,4,6,6] x, float[4,4,1,1] w0, float[4] b0, float[4,4,1,1] w1, float[4] b1, float[4,4,1,1] w2,
               float[4] b2, float[1,4,1,1] c) => (float[N,4,6,6] y) {
  c0 = Conv(x, w0, b0)
  c1 = Conv(c0, w1, b1)
  s1 = Add(c0, c1)
  r1 = Relu(s1)
  c2 = Conv(r1, w2, b2)
  s2 = Add(c2, r1)
  s3 = Sub(s2, c1)
  y = Add(s3, c)
}"""
SUMS = (("c0", "c1", "r1"), ("c2", "r1", "s2"), ("s2", "c1", "s3"), ("s3", "c", "y"))
STEPS = st.builds(lambda m, e: m * 2.0**e, st.sampled_from((1.0, 1.125, 1.5)), st.integers(-6, -3))


def placed(grid: str = "short") -> tuple[ir.Model, dict[str, QParams]]:
    model = prepare(parse(CHAIN, seed=3))
    placement = place(model, options=PlacementOptions(scale_grid=grid))  # type: ignore[arg-type]
    return model, calibrate(model, placement, feeds(model)[1])


MODEL, QPARAMS = placed()
PLACEMENT = place(MODEL, options=PlacementOptions(scale_grid="short"))
TENSORS = list(dict.fromkeys(name for names in SUMS for name in names))


def with_scales(scales: dict[str, float]) -> dict[str, QParams]:
    return QPARAMS | {name: symmetric(QPARAMS[name].spec, scale) for name, scale in scales.items()}


@given(st.fixed_dictionaries(dict.fromkeys(TENSORS, STEPS)))
def test_all_sums_agree_and_no_scale_passes_its_power_of_two(scales: dict[str, float]) -> None:
    before = with_scales(scales)
    after = agreeing_sums(MODEL, PLACEMENT, before)
    for names in SUMS:
        assert rounds_alike(*(float(after[PLACEMENT.scale_owner(name)].scale) for name in names)), names
    for name, params in before.items():
        old, new = np.asarray(params.scale), np.asarray(after[name].scale)
        assert np.all(old <= new), name
        assert np.all(new <= 2 ** np.ceil(np.log2(old))), name
        if name not in TENSORS:
            assert after[name] is params
    assert agreeing_sums(MODEL, PLACEMENT, after) == after


def raised(*sixteenths: float) -> list[float]:
    """The scales of c0, c1 and their sum r1 afterwards, in sixteenths."""
    scales = dict(zip(("c0", "c1", "r1"), np.array(sixteenths) / 16, strict=True))
    after = agreeing_sums(MODEL, PLACEMENT, with_scales(scales))
    return [16 * float(after[name].scale) for name in scales]


def test_what_costs_least_is_raised() -> None:
    assert raised(1, 0.25, 1.5) == [1, 0.25, 2]  # powers of two stay, so that the sum must become one
    assert raised(1.5, 1.125 / 4, 2.25) == [1.5, 0.5, 2.25]  # the small operand instead of the sum
    assert raised(1.5, 0.75, 2.25) == [1.5, 0.75, 2.25]


@pytest.mark.parametrize("grid", ["free", "power_of_two"])
def test_other_grids_stay(grid: str) -> None:
    model, qparams = placed(grid)
    placement = place(model, options=PlacementOptions(scale_grid=grid))  # type: ignore[arg-type]
    assert agreeing_sums(model, placement, qparams) == qparams


def test_a_student_is_settled_in_place() -> None:
    student = GraphModule(MODEL, placement=PLACEMENT, qparams=with_scales({"c0": 1 / 16, "c1": 1 / 64, "r1": 1.5 / 16}))
    assert settle_sums(student, MODEL) >= 1
    assert float(student.current_qparams()["r1"].scale) == 2 / 16
    assert settle_sums(student, MODEL) == 0


def test_onnxruntime_then_computes_what_the_file_says() -> None:
    text = """g (float[N,4,16,16] x, float[4,4,1,1] w0, float[4,4,1,1] w1) => (float[N,4,16,16] y) {
        a = Conv(x, w0)
        b = Conv(a, w1)
        y = Add(a, b)
    }"""
    model = prepare(parse(text))
    placement = place(model, options=PlacementOptions(scale_grid="short"))
    x = feeds(model)[1]
    qparams = calibrate(model, placement, x)
    for name, scale in {"a": 1 / 16, "b": 1 / 64, "y": 1.5 / 16}.items():
        qparams[name] = symmetric(qparams[name].spec, scale)
    before = build_onnx(model, placement, qparams)
    assert np.mean(run(before, x) != run(before, x, optimise=True)) > 0.001
    after = build_onnx(model, placement, agreeing_sums(model, placement, qparams))
    np.testing.assert_array_equal(run(after, x), run(after, x, optimise=True))
