from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fullquant.data.augment import Augment, crop_box
from fullquant.data.images import Preprocess
from fullquant.data.jpeg import reduce, reduction
from fullquant.errors import ConfigError

_WIDTH, _HEIGHT = 803, 605  # no multiples of 8: the last blocks are cut


def _gradient(width: int = _WIDTH, height: int = _HEIGHT) -> Image.Image:
    """Red grows to the right, green downward: a pixel's colour says where it lies, to 1/3 of a pixel of the result."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, width)
    pixels[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def _file(image: Image.Image, file_format: str = "JPEG", **options: Any) -> Image.Image:
    """The image written and opened again, not decoded yet."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=95, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), least=st.tuples(st.integers(1, 400), st.integers(1, 400))
)
def test_reduction_is_the_largest_that_keeps_enough(width: int, height: int, least: tuple[int, int]) -> None:
    def enough(factor: int) -> bool:
        return width / factor >= least[0] and height / factor >= least[1]

    factor = reduction(width, height, *least)
    assert factor in (1, 2, 4, 8)
    assert factor == 1 or enough(factor)
    assert factor == 8 or not enough(2 * factor)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0}), ("L", {}), ("CMYK", {})],
)
def test_a_reduced_pixel_is_the_mean_of_its_block(factor: int, mode: str, options: dict[str, Any]) -> None:
    source = _gradient(160, 96).convert(mode)
    image = _file(source, **options)
    assert reduce(image, factor) == factor
    assert image.size == (160 // factor, 96 // factor)
    expected = np.asarray(source.resize(image.size, Image.Resampling.BOX), np.float64)
    assert np.abs(np.asarray(image, np.float64) - expected).mean() < 1.5


def test_only_undecoded_jpegs_are_reduced() -> None:
    decoded = _file(_gradient())
    decoded.load()
    for image in (_file(_gradient(), "PNG"), _gradient(), decoded):
        assert reduce(image, 4) == 1
        assert image.size == (_WIDTH, _HEIGHT)
    unchanged = _file(_gradient())
    assert reduce(unchanged, 1) == 1
    assert np.array_equal(np.asarray(unchanged), np.asarray(decoded))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("index", range(12))
def test_a_crop_of_a_reduced_image_is_the_same_crop(index: int, flip: bool) -> None:
    """The colours say which part was cut: they agree with those of the image at its full size."""
    augment = Augment(flip=flip)
    full = Preprocess((40, 56), 64, fast_decode="never").pixels(
        _file(_gradient()), augment, augment.generator(0, index)
    )
    image = _file(_gradient())
    got = Preprocess((40, 56), 64).pixels(image, augment, augment.generator(0, index))
    left, top, right, bottom = crop_box(_WIDTH, _HEIGHT, augment, augment.generator(0, index))
    factor = reduction(right - left, bottom - top, 56, 40)
    assert factor > 1
    assert image.size == (-(-_WIDTH // factor), -(-_HEIGHT // factor))
    assert np.abs(got.astype(int) - full)[:, :, :2].max() <= 3
    again = Preprocess((40, 56), 64).pixels(_file(_gradient()), augment, augment.generator(0, index))
    np.testing.assert_array_equal(got, again)


def test_a_crop_as_small_as_the_input_keeps_the_full_size() -> None:
    augment = Augment()
    for index in range(20):
        image = _file(_gradient(300, 300))
        fast = Preprocess(224).pixels(image, augment, augment.generator(0, index))
        assert image.size == (300, 300)
        never = Preprocess(224, fast_decode="never")
        full = never.pixels(_file(_gradient(300, 300)), augment, augment.generator(0, index))
        np.testing.assert_array_equal(fast, full)


@pytest.mark.parametrize("fast_decode", ["never", "training"])
def test_evaluation_reads_every_pixel(fast_decode: Any) -> None:
    image = _file(_gradient())
    got = Preprocess(56, 64, fast_decode=fast_decode).pixels(image)
    assert image.size == (_WIDTH, _HEIGHT)
    height, width = 64, round(_WIDTH * 64 / _HEIGHT)
    whole = np.asarray(_file(_gradient()).resize((width, height), Image.Resampling.LANCZOS))
    left = (width - 56) // 2
    np.testing.assert_array_equal(got, whole[4:60, left : left + 56])


@pytest.mark.parametrize("geometry", [{}, {"resize_size": (60, 70)}, {"keep_ratio_pad": True, "resize_size": None}])
def test_always_reduces_evaluation_too(geometry: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"img_size": 56, "resize_size": 64, **geometry}
    image = _file(_gradient())
    got = Preprocess(**settings, fast_decode="always").pixels(image)
    full = Preprocess(**settings).pixels(_file(_gradient()))
    assert image.size == (-(-_WIDTH // 8), -(-_HEIGHT // 8))
    assert np.abs(got.astype(int) - full)[:, :, :2].max() <= 3


@pytest.mark.parametrize("settings", [{"interpolation": "bilinear_noaa"}, {"interpolation": "nearest"}])
def test_filters_that_sample_points_get_the_full_size(settings: dict[str, Any]) -> None:
    image = _file(_gradient())
    Preprocess(56, 64, fast_decode="always", **settings).pixels(image)
    assert image.size == (_WIDTH, _HEIGHT)


def test_orientation_keeps_the_full_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = _file(_gradient(), exif=exif)
    augment = Augment()
    Preprocess(40, 64, exif_orientation=True).pixels(image, augment, augment.generator(0, 0))
    assert image.size == (_WIDTH, _HEIGHT)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="fast_decode 'sometimes' is not one of never, training, always"):
        Preprocess(fast_decode="sometimes")  # type: ignore[arg-type]
