"""The NumPy reference of quantization: its formula, its bounds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fullquant.numerics.affine import dequantize, fake_quantize, quantize
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric

INT8 = QuantSpec(-128, 127)
UINT8 = QuantSpec(0, 255, symmetric=False)
CHANNELS = QuantSpec(-127, 127, axis=1)


def test_rounds_half_to_even_and_clips():
    x = [-1000.0, -1.5, -0.5, 0.5, 1.5, 2.5, 1000.0]
    assert quantize(x, symmetric(INT8, 1.0)).tolist() == [-128, -2, 0, 0, 2, 2, 127]
    affine = QParams(UINT8, np.float32(0.5), np.int64(10))
    assert quantize([-5.0, -6.0, 0.0, 1.0, 1000.0], affine).tolist() == [0, 0, 10, 12, 255]
    assert dequantize([0, 10, 12], affine).tolist() == [-5.0, 0.0, 1.0]


def test_per_channel_scales_lie_along_their_axis():
    x = np.ones((2, 3, 4), np.float32)
    q = quantize(x, symmetric(CHANNELS, [1.0, 0.5, 0.25]))
    assert q[:, :, 0].tolist() == [[1, 2, 4]] * 2
    assert np.array_equal(fake_quantize(x, symmetric(CHANNELS, [1.0, 0.5, 0.25])), x)


@given(
    x=arrays.arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)),
    scale=st.floats(2.0**-10, 2.0, width=32),
    zero_point=st.integers(0, 255),
)
def test_error_is_at_most_half_a_step_inside_the_range(x, scale, zero_point):
    qparams = QParams(UINT8, np.float32(scale), np.int64(zero_point))
    low, high = (float(dequantize(q, qparams)) for q in (0, 255))
    clipped = np.clip(x, low, high)
    assert np.abs(fake_quantize(x, qparams) - clipped).max() <= scale / 2 * (1 + 1e-4)


def test_infinities_and_overflowing_quotients_saturate():
    assert quantize([-np.inf, np.inf, 3e38, -3e38], symmetric(INT8, 1e-3)).tolist() == [-128, 127, 127, -128]


@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_nan_has_no_integer(function):
    with pytest.raises(ValueError, match="2 of 3 values are NaN"):
        function([1.0, np.nan, np.nan], symmetric(INT8, 1.0))
