"""Scales of few significant bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullquant.numerics.qparams import QParams, QuantSpec, short_scale, shortening_slack, symmetric
from fullquant.runtime.fake_quantize import step_size


@given(st.floats(1e-12, 1e6), st.integers(1, 8))
def test_few_bits_upwards_and_once(scale: float, bits: int) -> None:
    short = short_scale(np.float32(scale), bits)
    assert (1 - shortening_slack(bits)) * scale <= float(short) * (1 + 1e-6)
    # The next short scale is at most 1 + 2**(1 - bits) times as large, 4/3 where 1.75 is left out.
    assert float(short) <= scale * (4 / 3 if bits == 3 else 1 + 2.0 ** (1 - bits)) * (1 + 1e-6)
    mantissa, _ = np.frexp(np.float64(short))
    assert float(mantissa) * 2**bits == int(float(mantissa) * 2**bits)
    np.testing.assert_array_equal(short_scale(short, bits), short)


@given(st.floats(-12, 3), st.sampled_from([None, 1, 2, 3, 8]))
def test_the_trained_scale_is_the_written_one(log_scale: float, bits: int | None) -> None:
    tensor = torch.tensor(log_scale, dtype=torch.float32)
    trained = step_size(tensor, bits)
    spec = QuantSpec(-128, 127, scale_bits=bits)
    assert float(symmetric(spec, float(torch.exp(tensor))).scale) == float(trained)


def test_a_long_scale_is_refused() -> None:
    spec = QuantSpec(-128, 127, scale_bits=3)
    assert float(symmetric(spec, 0.1).scale) == 0.125
    with pytest.raises(ValueError, match="significant bits"):
        QParams(spec, np.float32(0.1), np.int64(0))
    with pytest.raises(ValueError, match="scale_bits"):
        QuantSpec(-128, 127, scale_bits=0)


@given(st.integers(0, 2**31 - 1))
def test_sums_are_exact_in_any_order(seed: int) -> None:
    """The reason for short scales: float32 sums of quantized products do not depend on the order."""
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, 256), rng.integers(-127, 128, 256)
    scale_x, scale_w = (short_scale(np.float32(s), 3) for s in rng.uniform(1e-3, 1, 2))
    products = (x * scale_x).astype(np.float32) * (w * scale_w).astype(np.float32)
    exact = np.sum(x * w) * (np.float64(scale_x) * np.float64(scale_w))
    forward, back = np.float32(0), np.float32(0)
    for value in products:
        forward += value
    for value in products[::-1]:
        back += value
    assert float(forward) == float(back) == exact


@pytest.mark.parametrize(("mantissa", "wrong"), [(1.0, 0), (1.25, 0), (1.5, 0), (1.75, 78)])
def test_paddle_rounds_ties_alike(mantissa: float, wrong: int) -> None:
    """Paddle computes rint(127 * (1 / Scale) * x), Scale = 127 * step: 1.75 is the one that it gets wrong."""
    f = np.float32
    step = f(mantissa / 32)
    factor = f(f(127) * f(f(1) / f(step * f(127))))
    ties = ((np.arange(-128, 127) + 0.5) * step).astype(f)
    assert int((np.rint(factor * ties) != np.rint(ties / step)).sum()) == wrong
    assert (float(short_scale(step, 3)) == step) == (wrong == 0)
