"""The quotient of the kernels is the one of IEEE 754."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.numerics.affine import fake_quantize
from fullquant.numerics.qparams import QParams, QuantSpec
from fullquant.runtime import kernels
from fullquant.runtime.kernels.division import quotient

_EVERY_MANTISSA = np.ldexp(np.arange(1 << 23, 1 << 24, dtype=np.float64), -23).astype(np.float32)


@numba.njit
def _differences(x, s):
    inverse = np.float32(1.0) / s
    count = 0
    for i in range(x.shape[0]):
        count += quotient(x[i], s, inverse) != x[i] / s
    return count


@pytest.mark.parametrize("divisor", [1.0, 6.0, 0.1, 1.0000001, 1.9999999, 0.0123456, 3e-9, 7e8])
def test_for_every_mantissa_it_is_the_rounded_quotient(divisor: float) -> None:
    assert _differences(_EVERY_MANTISSA, np.float32(divisor)) == 0


SIZES = st.floats(2.0**-40, 2.0**40, width=32)


@given(SIZES, SIZES, st.sampled_from([-1.0, 1.0]))
def test_for_any_operands_too(divisor: float, x: float, sign: float) -> None:
    assert _differences(np.float32([sign * x]), np.float32(divisor)) == 0


@pytest.mark.parametrize("scale", [0.02, 0.37])
def test_values_beyond_the_grid_and_infinities_clip_and_nan_stays(scale: float) -> None:
    x = np.float32([np.inf, -np.inf, 1e30, -1e30, 127 * scale, -128 * scale, 0.0, np.nan])
    y = np.empty_like(x)
    kernels.tensor_forward(x, y, scale, -128.0, 127.0, -np.inf, np.inf)
    grid = QParams(QuantSpec(-128, 127), np.float32(scale), np.int64(0))
    np.testing.assert_array_equal(y[:-1], fake_quantize(x[:-1], grid))
    assert np.isnan(y[-1])
