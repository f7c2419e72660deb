"""Scales of few significant bits."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullquant.numerics.qparams import (
    ACTIVATION_MANTISSAS,
    POWERS_OF_TWO,
    SHORTENING_SLACK,
    WEIGHT_MANTISSAS,
    QParams,
    QuantSpec,
    short_scale,
    symmetric,
)
from fullquant.runtime.fake_quantize import step_size

GRIDS = [POWERS_OF_TWO, ACTIVATION_MANTISSAS, WEIGHT_MANTISSAS]


@given(st.floats(1e-12, 1e6), st.sampled_from(GRIDS))
def test_on_the_grid_upwards_and_once(scale: float, mantissas: tuple[float, ...]) -> None:
    short = short_scale(np.float32(scale), mantissas)
    gap = max(b / a for a, b in pairwise([*mantissas, 2.0]))
    assert (1 - SHORTENING_SLACK) * scale * (1 - 1e-6) <= float(short) <= scale * gap * (1 + 1e-6)
    assert 2 * float(np.frexp(np.float64(short))[0]) in mantissas
    np.testing.assert_array_equal(short_scale(short, mantissas), short)


@given(st.floats(-12, 3), st.sampled_from([(), *GRIDS]))
def test_the_trained_scale_is_the_written_one(log_scale: float, mantissas: tuple[float, ...]) -> None:
    tensor = torch.tensor(log_scale, dtype=torch.float32)
    trained = step_size(tensor, mantissas)
    spec = QuantSpec(-128, 127, mantissas=mantissas)
    assert float(symmetric(spec, float(torch.exp(tensor))).scale) == float(trained)


def test_a_long_scale_is_refused() -> None:
    spec = QuantSpec(-128, 127, mantissas=ACTIVATION_MANTISSAS)
    assert float(symmetric(spec, 0.1).scale) == 0.125  # 0.1 is 1.6 / 16
    with pytest.raises(ValueError, match="times a power of two"):
        QParams(spec, np.float32(0.1), np.int64(0))


@pytest.mark.parametrize("mantissas", [(1.5,), (1.0, 2.0), (1.0, 1.5, 1.25), (1.0, 1.0)])
def test_a_wrong_grid_is_refused(mantissas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="mantissas"):
        QuantSpec(-128, 127, mantissas=mantissas)


@given(st.integers(0, 2**31 - 1))
def test_sums_are_exact_in_any_order(seed: int) -> None:
    """The reason for short scales: float32 sums of quantized products do not depend on the order."""
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, 16), rng.integers(-127, 128, 16)
    scale_x = short_scale(np.float32(rng.uniform(1e-3, 1)), ACTIVATION_MANTISSAS)
    scale_w = short_scale(np.float32(rng.uniform(1e-3, 1)), WEIGHT_MANTISSAS)
    products = (x * scale_x).astype(np.float32) * (w * scale_w).astype(np.float32)
    exact = np.sum(x * w) * (np.float64(scale_x) * np.float64(scale_w))
    forward, back = np.float32(0), np.float32(0)
    for value in products:
        forward += value
    for value in products[::-1]:
        back += value
    assert float(forward) == float(back) == exact


@pytest.mark.parametrize(("mantissa", "wrong"), [(1.0, 0), (1.125, 0), (1.25, 0), (1.375, 113), (1.5, 0), (1.75, 78)])
def test_paddle_rounds_ties_alike(mantissa: float, wrong: int) -> None:
    """Paddle computes rint(127 * (1 / Scale) * x), Scale = 127 * step: some mantissas send ties the wrong way."""
    f = np.float32
    step = f(mantissa / 32)
    factor = f(f(127) * f(f(1) / f(step * f(127))))
    ties = ((np.arange(-128, 127) + 0.5) * step).astype(f)
    assert int((np.rint(factor * ties) != np.rint(ties / step)).sum()) == wrong
    assert mantissa not in ACTIVATION_MANTISSAS or wrong == 0


def _wrong_ties(numerator: float, denominator: float) -> int:
    """Half-way values n + 1/2 = accumulator * numerator / (denominator * 2**k) that a float32 factor rounds wrongly."""
    ratio = Fraction(numerator) / Fraction(denominator)
    factor = np.float32(numerator) / np.float32(denominator)
    n = np.arange(-129, 129)
    wrong = 0
    for k in range(1, 14):
        accumulator, rest = np.divmod((2 * n + 1) * ratio.denominator * 2 ** (k - 1), ratio.numerator)
        chosen = (rest == 0) & (np.abs(accumulator) < 2**24)
        value = accumulator[chosen].astype(np.float32) * (factor * np.float32(2.0**-k))
        wrong += int((np.rint(value) != np.rint(n[chosen] + 0.5)).sum())
    return wrong


def test_integer_kernels_round_ties_alike() -> None:
    """Convolutions and products multiply the int32 sum by float32(scale_x * scale_w / scale_y)."""
    for out in ACTIVATION_MANTISSAS:
        for x in ACTIVATION_MANTISSAS:
            for other in {*WEIGHT_MANTISSAS, *ACTIVATION_MANTISSAS}:
                assert _wrong_ties(x * other, out) == 0
    assert _wrong_ties(1.5, 1.25) > 0  # the reason why 1.25 is left out
