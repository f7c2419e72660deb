"""The observer behind `auto` answers as each single observer does."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fullquant.calibration.observers import (
    EveryObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    PercentileObserver,
)
from fullquant.numerics.qparams import QuantSpec

SINGLE: dict[str, Observer] = {
    "min_max": MinMaxObserver(),
    "moving_average": MovingAverageObserver(),
    "percentile": PercentileObserver(0.999),
    "mse": MseObserver(),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("spec", [QuantSpec(-128, 127), QuantSpec(0, 255, symmetric=False)])
def test_every_observer_answers_as_the_single_one(name: str, spec: QuantSpec) -> None:
    rng = np.random.default_rng(0)
    every, single = EveryObserver(percentile=0.999), copy.deepcopy(SINGLE[name])
    for _ in range(3):
        values = rng.standard_t(3, 5000).astype(np.float32)
        every.update(values)
        single.update(values)
    every.choose(name)
    ours, theirs = every.qparams(spec), single.qparams(spec)
    np.testing.assert_array_equal(ours.scale, theirs.scale)
    np.testing.assert_array_equal(ours.zero_point, theirs.zero_point)
