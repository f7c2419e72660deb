from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.data import resize
from fullquant.data.resize import bilinear_noaa, bilinear_numpy

_sizes = st.integers(1, 97)


@settings(max_examples=150, deadline=None)
@given(_sizes, _sizes, _sizes, _sizes, st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_own_arithmetic_is_opencvs(h: int, w: int, height: int, width: int, channels: int, seed: int) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)
    expected = np.asarray(cv2.resize(image, (width, height))).reshape(height, width, channels).astype(int)
    assert np.abs(bilinear_numpy(image, height, width).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(bilinear_noaa(image, height, width), expected)


def test_almost_always_exactly() -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (40, 250, 3), dtype=np.uint8)
    for size in ((48, 192), (64, 64), (20, 125), (80, 500), (13, 7)):
        different = bilinear_numpy(image, *size) != cv2.resize(image, (size[1], size[0]))
        assert different.mean() < 0.01, size


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    with_it = bilinear_noaa(image, 48, 80)
    monkeypatch.setattr(resize, "_opencv", lambda: None)
    without = bilinear_noaa(image, 48, 80)
    assert np.abs(with_it.astype(int) - without.astype(int)).max() <= 1


def test_same_size_is_the_identity_and_flat_stays_flat() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(bilinear_numpy(image, 9, 11), image)
    assert (bilinear_numpy(np.full((5, 7, 3), 255, np.uint8), 40, 3) == 255).all()


def test_antialiasing_differs() -> None:
    """The check would notice Pillow's antialiased filter in this place."""
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(bilinear_numpy(image, 16, 16).astype(int) - smooth).max() > 30
