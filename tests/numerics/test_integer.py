"""Fixed-point arithmetic against exact rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fullquant.numerics.integer import (
    INT32_MAX,
    INT32_MIN,
    common_fixed_point,
    divide_by_power,
    doubling_high_product,
    fixed_point,
    overflow,
    requantize,
    round_shift,
    weighted_sum,
)
from fullquant.numerics.qparams import ACTIVATION_MANTISSAS, WEIGHT_MANTISSAS

int32 = st.integers(INT32_MIN, INT32_MAX)
factors = st.floats(1e-9, 1e3)


def even(value: Fraction) -> int:
    """Nearest integer, half-way values to even: what Python's round does with fractions."""
    return round(value)


def away(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2)) if value >= 0 else math.ceil(value - Fraction(1, 2))


def one(value: int) -> np.ndarray:
    return np.asarray([value], dtype=np.int64)


@given(st.floats(1e-12, 2.0**31 - 1))
def test_the_multiplier_has_31_bits(real: float) -> None:
    found = fixed_point(real)
    multiplier, shift = int(found.multiplier), int(found.shift)
    if real < 2.0**-33:
        assert multiplier == 0 or shift == 62
    if multiplier:
        assert 2**30 <= multiplier < 2**31
        error = abs(Fraction(multiplier, 2**shift) - Fraction(real))
        assert error <= Fraction(1, 2 ** (shift + 1))
        assert found.exact == (error == 0)


@pytest.mark.parametrize("real", [0.0, -1.0, math.inf, math.nan, 2.0**31])
def test_what_is_no_factor_is_refused(real: float) -> None:
    with pytest.raises(ValueError, match="no factor"):
        fixed_point(real)


@given(st.integers(-(2**62), 2**62 - 1), st.integers(0, 62))
@example(6, 2)
@example(10, 2)
@example(-6, 2)
def test_round_shift_is_the_exact_rounding(value: int, shift: int) -> None:
    assert int(round_shift(one(value), shift)[0]) == even(Fraction(value, 2**shift))


@given(int32, factors)
@example(3 * 2**9, 1 / 1.5 / 2**10)
def test_requantize_is_the_exact_rounding(value: int, factor: float) -> None:
    """Wherever the result is one of 8 bits and not within the multiplier's error of a half-way value."""
    exact = Fraction(value) * Fraction(factor)
    assume(abs(exact) < 2**12)
    found = fixed_point(factor)
    error = abs(value) * Fraction(1, 2 ** (int(found.shift) + 1))
    distance = abs(abs(exact - math.floor(exact)) - Fraction(1, 2))
    result = int(requantize(one(value), found)[0])
    if distance > 2 * error:
        assert result == even(exact)
    assert abs(result - exact) <= Fraction(1, 2) + 2 * error


@pytest.mark.parametrize("x", ACTIVATION_MANTISSAS)
@pytest.mark.parametrize("w", WEIGHT_MANTISSAS)
@pytest.mark.parametrize("y", ACTIVATION_MANTISSAS)
@pytest.mark.parametrize("k", [1, 5, 9, 13])
def test_short_scales_are_rounded_exactly(x: float, w: float, y: float, k: int) -> None:
    """Half-way values are frequent here, and a factor such as 2/3 has no exact multiplier; all are right."""
    ratio = Fraction(x) * Fraction(w) / Fraction(y) / 2**k
    steps, rest = np.divmod((2 * np.arange(-200, 200) + 1) * ratio.denominator, 2 * ratio.numerator)
    halves = steps[rest == 0]
    assert halves.size or k < 5
    values = np.concatenate([halves, np.random.default_rng(k).integers(-(2**18), 2**18, 1000)])
    factor = fixed_point(float(np.float64(x) * w / y / 2**k))
    expected = np.asarray([even(int(v) * ratio) for v in values])
    inside = np.abs(expected) < 2**15
    np.testing.assert_array_equal(requantize(values, factor)[inside], expected[inside])


@given(int32, int32)
@example(INT32_MIN, INT32_MIN)
@example(7, 2**30)
@example(-7, 2**30)
def test_doubling_high_product(a: int, b: int) -> None:
    upward = math.floor(Fraction(a) * Fraction(b) / 2**31 + Fraction(1, 2))
    assert int(doubling_high_product(one(a), b)[0]) == min(upward, INT32_MAX)


@given(int32, st.integers(0, 31))
def test_divide_by_power(value: int, exponent: int) -> None:
    assert int(divide_by_power(one(value), exponent)[0]) == away(Fraction(value, 2**exponent))


@given(int32, factors)
def test_gemmlowp_rounds_twice(value: int, factor: float) -> None:
    """To 32 bits, half-way values upward, then by the power of two, half-way values away from zero."""
    exact = Fraction(value) * Fraction(factor)
    assume(abs(exact) < 2**20 and abs(value) * max(factor, 1.0) < 2**30)
    result = int(requantize(one(value), fixed_point(factor), "gemmlowp")[0])
    # Below a factor of 1 the first rounding is one of half a unit of the 32-bit product.
    assert abs(result - exact) <= Fraction(1, 2) + Fraction(1, 2) * Fraction(min(factor, 1.0)) * 2 + Fraction(1, 1000)


def test_the_two_roundings_differ_on_half_way_values() -> None:
    values = np.asarray([-10, -6, -2, 2, 6, 10])
    quarter = fixed_point(0.25)
    np.testing.assert_array_equal(requantize(values, quarter), [-2, -2, 0, 0, 2, 2])
    np.testing.assert_array_equal(requantize(values, quarter, "gemmlowp"), [-3, -2, -1, 1, 2, 3])


terms = st.lists(st.tuples(st.integers(-255, 255), st.floats(0.01, 20) | st.floats(-20, -0.01)), min_size=2, max_size=3)


@given(terms)
def test_weighted_sum_rounds_once(given_terms: list[tuple[int, float]]) -> None:
    exact = sum((v * Fraction(f) for v, f in given_terms), Fraction(0))
    largest = max(abs(f) for _, f in given_terms)
    result = int(weighted_sum([(one(v), f) for v, f in given_terms])[0])
    error = 3 * 255 * Fraction(largest) / 2**30
    assert abs(result - exact) <= Fraction(1, 2) + error
    distance = abs(abs(exact - math.floor(exact)) - Fraction(1, 2))
    if distance > 2 * error:
        assert result == even(exact)
    lite = int(weighted_sum([(one(v), f) for v, f in given_terms], "gemmlowp")[0])
    assert abs(lite - exact) <= Fraction(1, 2) + Fraction(largest) / 2**10


@pytest.mark.parametrize("y", ACTIVATION_MANTISSAS)
@pytest.mark.parametrize("k", range(-4, 4))
def test_sums_with_short_scales_are_exact(y: float, k: int) -> None:
    """All pairs of small integers, so all kinds of half-way values: (4 p + q) / 6 for scales 1, 1/4 and 1.5."""
    p, q = (grid.reshape(-1) for grid in np.meshgrid(np.arange(-15, 16), np.arange(-15, 16)))
    for a in ACTIVATION_MANTISSAS:
        for b in ACTIVATION_MANTISSAS:
            first, second = Fraction(a) / Fraction(y), Fraction(b) * Fraction(2) ** k / Fraction(y)
            expected = [even(int(m) * first + int(n) * second) for m, n in zip(p, q, strict=True)]
            np.testing.assert_array_equal(weighted_sum([(p, a / y), (q, b / y * 2.0**k)]), expected)


def test_common_fixed_point_keeps_the_ratio() -> None:
    (first, second), shift = common_fixed_point([0.75, -0.001])
    assert first == 0.75 * 2**shift
    assert second == round(-0.001 * 2**shift)
    assert 2**30 <= first < 2**31


@pytest.mark.parametrize(
    ("value", "expected"), [(INT32_MAX, 0), (INT32_MAX + 1, 1), (INT32_MIN, 0), (INT32_MIN - 1, 1)]
)
def test_overflow_is_seen_at_the_ends(value: int, expected: int) -> None:
    assert overflow(np.asarray([0, value], dtype=np.int64)) == expected
