"""Observers: each finds the range that its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fullquant.calibration.observers import (
    Histogram,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    PercentileObserver,
    qparams_of_range,
)
from fullquant.errors import ConfigError, FullquantError
from fullquant.numerics import affine
from fullquant.numerics.qparams import QuantSpec

INT8, UINT8 = QuantSpec(-128, 127), QuantSpec(0, 255, symmetric=False)
FLOATS = st.floats(-100, 100, width=32)


def _array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@given(FLOATS, FLOATS)
@settings(deadline=None)
def test_the_error_inside_the_range_is_at_most_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    x = np.linspace(low, high, 301).astype(np.float32)
    for spec in (INT8, UINT8):
        qparams = qparams_of_range(low, high, spec)
        # An affine zero point is rounded, which moves the range by up to half a step.
        slack = 0.501 if spec.symmetric else 1.001
        assert np.abs(affine.fake_quantize(x, qparams) - x).max() <= slack * float(qparams.scale) + 1e-6


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS))
@settings(deadline=None)
def test_min_max_is_the_largest_absolute_value(x: np.ndarray) -> None:
    observer = MinMaxObserver()
    observer.update(x[: len(x) // 2 + 1])
    observer.update(x)
    assert float(observer.qparams(INT8).scale) == pytest.approx(max(np.abs(x).max(), 1e-5) / 127, rel=1e-5)


def test_moving_average_follows_the_definition() -> None:
    observer = MovingAverageObserver(0.9)
    observer.update(_array(-1, 10))
    observer.update(_array(-2, 20))
    assert float(observer.qparams(INT8).scale) == pytest.approx(11 / 127)


def test_percentile_cuts_the_outlier() -> None:
    observer = PercentileObserver(0.999)
    observer.update(np.append(np.linspace(-1, 1, 100_000), 50).astype(np.float32))
    assert float(observer.qparams(INT8).scale) == pytest.approx(1 / 127, rel=0.05)
    assert PercentileObserver(1.0).percentile == 1.0


def test_mse_beats_min_max_on_a_heavy_tail_and_keeps_a_uniform_range() -> None:
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(3, 200_000).astype(np.float32)
    for spec in (INT8, UINT8):
        best, plain = MseObserver(), MinMaxObserver()
        best.update(heavy)
        plain.update(heavy)
        low, high = float(heavy.min()), float(heavy.max())
        others = [qparams_of_range(low * share, high * share, spec) for share in np.linspace(0.05, 1, 60)]
        error, limit, *rest = [
            np.mean((affine.fake_quantize(heavy, q) - heavy) ** 2)
            for q in (best.qparams(spec), plain.qparams(spec), *others)
        ]
        assert error < 0.8 * limit
        assert error <= 1.01 * min(rest)
    uniform = MseObserver()
    uniform.update(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert float(uniform.qparams(INT8).scale) == pytest.approx(1 / 127, rel=0.03)


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 30), elements=FLOATS), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_growing_histogram_loses_no_value(batches: list[np.ndarray]) -> None:
    histogram = Histogram(64)
    for batch in batches:
        histogram.update(batch)
    values = np.concatenate(batches)
    assert histogram.counts.sum() == len(values)
    width = 2 * histogram.reach / 64
    counted = np.repeat(histogram.centres(), histogram.counts)
    # float32 bin edges: a value may lie a hair beyond its bin.
    assert np.abs(np.sort(counted) - np.sort(values)).max() <= width / 2 + 1e-4 * histogram.reach


def test_a_tensor_of_zeros_still_gets_a_scale() -> None:
    for make in (MinMaxObserver, MovingAverageObserver, PercentileObserver, MseObserver):
        observer = make()
        observer.update(np.zeros(10, np.float32))
        assert float(observer.qparams(INT8).scale) > 0


def test_non_finite_values_and_wrong_settings_are_refused() -> None:
    for observer in (MinMaxObserver(), MseObserver()):
        with pytest.raises(FullquantError, match="overflows"):
            observer.update(_array(1, np.inf)) or observer.qparams(INT8)
    with pytest.raises(ConfigError, match="moving_rate"):
        MovingAverageObserver(1.0)
    with pytest.raises(ConfigError, match="percentile"):
        PercentileObserver(99.99)
