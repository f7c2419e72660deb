"""Softmax, logarithm, roots and normalisation in integers against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.numerics.integer_functions import (
    affine_map,
    layer_norm,
    log_softmax,
    natural_logarithm,
    softmax,
    square_root,
)

scales = st.floats(1e-3, 0.3)


def scores(seed: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (4, classes))


@given(st.integers(0, 2**31), st.sampled_from([2, 10, 1000]), scales, st.sampled_from([1 / 128, 1 / 256, 0.003]))
def test_softmax(seed: int, classes: int, scale: float, scale_out: float) -> None:
    x = scores(seed, classes)
    real = np.exp((x - x.max(axis=1, keepdims=True)) * scale)
    real /= real.sum(axis=1, keepdims=True)
    assert np.abs(softmax(x, scale, scale_out, 1) - real / scale_out).max() <= 0.5 + 0.02


@given(st.integers(0, 2**31), st.sampled_from([2, 10, 1000]), scales)
def test_log_softmax(seed: int, classes: int, scale: float) -> None:
    x = scores(seed, classes)
    shifted = (x - x.max(axis=1, keepdims=True)) * scale
    real = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scale_out = max(float(np.abs(real).max()) / 128, 1e-2)
    assert np.abs(log_softmax(x, scale, scale_out, 1) - real / scale_out).max() <= 0.5 + 0.05


@given(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=20))
def test_natural_logarithm(values: list[int]) -> None:
    found = natural_logarithm(np.asarray(values))
    assert np.abs(found - np.log(np.asarray(values, np.float64)) * 2**20).max() <= 2


@given(st.integers(0, 2**62 - 1))
def test_square_root(value: int) -> None:
    assert int(square_root(np.asarray([value]))[0]) == math.isqrt(value)


@given(st.integers(0, 2**31), st.floats(1e-3, 1), st.sampled_from([4, 96, 768]), st.floats(1e-6, 1e-3))
def test_layer_norm(seed: int, scale: float, count: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (3, 5, count))
    gain, offset = rng.normal(1, 0.3, count), rng.normal(0, 0.3, count)
    v = x * scale
    real = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + epsilon) * gain + offset
    found = layer_norm(x, scale, 1 / 32, (2,), epsilon, gain, offset)
    assert np.abs(found - real * 32).max() <= 0.5 + 0.01


def test_layer_norm_of_a_constant_is_the_offset() -> None:
    x = np.full((2, 64), 17)
    found = layer_norm(x, 0.1, 0.25, (1,), 1e-5, np.ones(64), np.full(64, 0.5))
    np.testing.assert_array_equal(found, 2)


def test_layer_norm_refuses_what_64_bits_do_not_hold() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        layer_norm(np.zeros((1, 2**22), np.int64), 1.0, 1.0, (1,), 1e-5, np.ones(1), np.zeros(1))


@given(st.integers(0, 2**31), st.floats(1e-6, 10), st.floats(0, 300))
def test_affine_map(seed: int, gain: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-255, 256, (3, 8))
    gains, offsets = gain * rng.uniform(0.1, 1, 8), offset * rng.uniform(-1, 1, 8)
    assert np.abs(affine_map(x, gains, offsets) - (gains * x + offsets)).max() <= 0.5 + 1e-4
