"""Every integer kernel against the simulation, which is fake-quantized float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fullquant.errors import AccumulatorOverflowError, EngineError
from fullquant.graph.edit import set_initializer
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams
from fullquant.placement.target import TARGETS
from fullquant.runtime.integer import IntegerModel, IntegerTensor
from fullquant.runtime.integer.plan import _BUILDERS
from tests.graph.toy_models import parse
from tests.runtime.integer.models import OPERATORS, Placed, X, operator, placed

OPTIONS: list[dict[str, Any]] = [{}, {"target": "onnxruntime"}, {"scale_grid": "free"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_integers_are_the_simulation(name: str, options: dict[str, Any]) -> None:
    one = operator(name, **options)
    integer = one.integer()
    assert integer.float_nodes == ()
    rows = one.compare(integer).rows()
    assert rows[0].tensor == "x"
    assert rows[-1].tensor == "y"
    for row in rows:
        assert row.largest <= 1, row
        # Half-way values of averages and exponentials are decided by float32's last bit; nothing else is left open.
        assert row.equal_share >= 0.995, row
    assert (
        max(abs(int(v)) for v in (integer.tensors(one.images)["y"].q.min(), integer.tensors(one.images)["y"].q.max()))
        > 10
    )


#: Between int8 tensors, but computed in float by every target, and so by the integer model, which says it:
#: tests/writers/test_rare_operators.py.
IN_FLOAT = {"ConvTranspose", "LpNormalization", "TopK", "Where"}


def test_every_operator_of_the_targets_has_a_kernel() -> None:
    placed = {op for target in TARGETS.values() for op in target.rules}
    assert placed - set(_BUILDERS) == IN_FLOAT
    assert {target.kernel(op) for target in TARGETS.values() for op in IN_FLOAT} <= {"float", None}


@pytest.mark.parametrize("name", ["conv", "add", "mul", "average pool"])
def test_gemmlowp_is_within_a_step(name: str) -> None:
    one = operator(name)
    rows = one.compare(one.integer(rounding="gemmlowp")).rows()
    assert all(row.largest <= 1 for row in rows)
    assert any(row.equal < row.elements for row in rows), "half-way values go the other way"


def test_batch_normalization_that_nothing_takes_in() -> None:
    text = f"""g ({X}, float[6] s, float[6] b, float[6] m, float[6] v) => (float[N,6,9,9] y) {{
      y = BatchNormalization(x, s, b, m, v)
    }}"""
    model = parse(text, v=np.float32([0.5, 1, 2, 0.1, 1, 3]))
    one = placed(model)
    # The passes make a depthwise convolution of it; put the original back.
    one = Placed(model, one.placement, one.qparams, one.images)
    integer = one.integer()
    assert integer.float_nodes == ()
    row = one.compare(integer).rows()[-1]
    assert row.largest <= 1
    assert row.equal_share > 0.995


# --- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
def test_large_sums_are_exact(target: str) -> None:
    """K = 4608 products of the largest integers: far beyond 2**24, so the channels are cut into parts."""
    text = "g (float[N,512,3,3] x, float[2,512,3,3] w, float[2] b) => (float[N,2,1,1] y) { y = Conv(x, w, b) }"
    weight = np.ones((2, 512, 3, 3), np.float32)
    weight[1, ::2] = -1
    images = np.random.default_rng(0).choice(np.float32([-1, 1]), (3, 512, 3, 3))
    images[0] = 1
    one = placed(parse(text, w=weight, b=np.zeros(2, np.float32)), target, images=images)
    one.images = images
    integer = one.integer()
    x = integer.tensors(images)["x"]
    weights, out = one.qparams["w"], one.qparams["y"]
    sums = np.einsum("ncij,ocij->no", x.centred(), affine.quantize(weight, weights))
    assert np.abs(sums).max() > 2**25
    steps = np.rint(sums * float(x.grid.scale) * weights.scale.astype(np.float64) / float(out.scale))
    expected = np.clip(steps + int(out.zero_point), out.spec.qmin, out.spec.qmax)
    np.testing.assert_array_equal(integer.tensors(images)["y"].q.reshape(3, 2), expected)


@pytest.mark.parametrize("group", [1, 2])
def test_not_one_unit_of_a_large_sum_is_lost(group: int) -> None:
    """4607 * 127 * 127 + 126 * 127 is odd; float32 has multiples of 8 there. The bias takes the sum back to about 0."""
    text = f"g (float[N,{512 * group},3,3] x, float[2,512,3,3] w, float[2] b) => (float[N,2,1,1] y) {{"
    weight = np.ones((2, 512, 3, 3), np.float32)
    weight[:, 0, 0, 0] = 126 / 127
    images = np.ones((1, 512 * group, 3, 3), np.float32)
    model = parse(text + f" y = Conv <group = {group}> (x, w, b) }}", w=weight, b=np.zeros(2, np.float32))
    one = placed(model, images=images, scale_grid="free")
    step = (one.qparams["x"].scale * one.qparams["w"].scale).astype(np.float32)
    total = 4607 * 127 * 127 + 126 * 127
    bias = np.float32(-total * step)
    set_initializer(one.model.graph.initializers["b"], bias)
    units = QParams(one.qparams["y"].spec, step[0], np.int64(0))
    integer = IntegerModel(one.model, one.placement, {**one.qparams, "y": units})
    assert integer.float_nodes == ()
    found = integer.tensors(images, keep=("y",))["y"]
    assert isinstance(found, IntegerTensor)
    rest = total + np.rint(bias / step.astype(np.float64))
    assert np.all(np.abs(rest) <= 8)
    np.testing.assert_array_equal(found.q.reshape(-1), rest)


GEMM = "g (float[N,64] x, float[64,2] w, float[2] b) => (float[N,2] y) { y = Gemm(x, w, b) }"


def with_bias(share: float) -> Placed:
    """64 products of 127 * 127 and a bias of `share` of the largest 32-bit integer."""
    images = np.ones((1, 64), np.float32)
    one = placed(parse(GEMM, w=np.ones((64, 2), np.float32), b=np.zeros(2, np.float32)), images=images)
    step = float(one.qparams["x"].scale) * one.qparams["w"].scale.astype(np.float64)
    set_initializer(one.model.graph.initializers["b"], np.float32(share * 2.0**31 * step))
    return Placed(one.model, one.placement, one.qparams, images)


def test_a_sum_beyond_32_bits_is_an_error_that_names_the_node() -> None:
    products = 64 * 127 * 127 / 2**31
    fits, does_not = with_bias(1 - 2 * products), with_bias(1 - products / 4)
    fits.integer().predict(fits.images)
    with pytest.raises(AccumulatorOverflowError, match=r"node 'gemm_0': 2 sums do not fit into 32 bits"):
        does_not.integer().predict(does_not.images)
    # The same through the path that is not compiled.
    with pytest.raises(AccumulatorOverflowError, match=r"node 'gemm_0': 2 sums do not fit into 32 bits"):
        does_not.integer(rounding="gemmlowp").predict(does_not.images)


def test_a_bias_beyond_32_bits_is_an_error_that_names_the_node() -> None:
    with pytest.raises(AccumulatorOverflowError, match=r"node 'gemm_0': the bias of channel 0 is 2.147e\+09"):
        with_bias(1.0).integer()


def test_values_that_are_no_number_are_an_error() -> None:
    images = np.ones((1, 6, 9, 9), np.float32)
    one = placed(parse(f"g ({X}) => (float[N,6,9,9] y) {{ y = Sqrt(x) }}"), images=images)
    assert one.integer().predict(images).min() > 0.9
    with pytest.raises(EngineError, match=r"node 'sqrt_0': the function is not a number"):
        one.integer().predict(-images)
