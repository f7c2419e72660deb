from __future__ import annotations

import dataclasses
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fullquant.data.augment import Augment, crop_box
from fullquant.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fullquant.errors import ConfigError, DataError


def _picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def _imagenet_oracle(image: Image.Image, short: int = 256, size: int = 224) -> np.ndarray[Any, Any]:
    """The plain steps: shorter side to `short`, centre crop, ImageNet's mean and std in float64."""
    width, height = image.size
    image = image.resize(
        (round(width * short / min(width, height)), round(height * short / min(width, height))),
        Image.Resampling.LANCZOS,
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"), np.float64)
    return np.asarray(((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
@pytest.mark.parametrize("size", [(500, 375), (227, 227), (301, 480), (256, 256), (90, 61)])
def test_defaults_are_the_imagenet_reader(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    _picture(*size, mode=mode).save(file)
    got = Preprocess().load(file)
    assert got.shape == (3, 224, 224)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    with Image.open(file) as image:
        np.testing.assert_allclose(got, _imagenet_oracle(image), atol=2e-6)


def test_oracle_can_fail(tmp_path: Path) -> None:
    _picture(300, 200).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        wrong = _imagenet_oracle(image, short=255)
    assert np.abs(Preprocess().load(tmp_path / "a.png") - wrong).max() > 0.01


def test_no_resize_crops_at_offset_one() -> None:
    image = _picture(227, 227)
    pixels = Preprocess(224, None).pixels(image)
    np.testing.assert_array_equal(pixels, np.asarray(image)[1:225, 1:225])


def test_exact_size_without_crop() -> None:
    image = _picture(50, 20)
    pixels = Preprocess((64, 32), (64, 32), interpolation="bilinear").pixels(image)
    np.testing.assert_array_equal(pixels, np.asarray(image.resize((32, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(("size", "width"), [((100, 20), 192), ((60, 48), 60), ((31, 40), 38), ((5, 200), 2)])
def test_keep_ratio_and_pad(size: tuple[int, int], width: int) -> None:
    preprocess = Preprocess.text_line()
    assert width == min(192, math.ceil(48 * size[0] / size[1]))
    image = _picture(*size)
    pixels = preprocess.pixels(image)
    assert pixels.shape == (48, width, 3)
    batch = preprocess.normalise(pixels, np.full((3, 48, 192), np.nan, np.float32))
    expected = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batch[:, :, :width], expected.transpose(2, 0, 1), atol=1e-6)
    assert not batch[:, :, width:].any()


def test_channel_orders() -> None:
    image = _picture(10, 8)
    plain = {"img_size": (8, 10), "resize_size": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    rgb = Preprocess(**plain).normalise(Preprocess(**plain).pixels(image))  # type: ignore[arg-type]
    other = Preprocess(**plain, channel_order="bgr")  # type: ignore[arg-type]
    np.testing.assert_array_equal(other.normalise(other.pixels(image)), rgb[::-1])
    grey = Preprocess((8, 10), None, mean=(0.5,), std=(0.5,), channel_order="grey")
    assert grey.shape == (1, 8, 10)
    expected = np.asarray(image.convert("L"), np.float32) / 255 * 2 - 1
    np.testing.assert_allclose(grey.normalise(grey.pixels(image))[0], expected, atol=1e-6)


def test_scale_mean_std_formula() -> None:
    preprocess = Preprocess((4, 4), None, mean=(127.0, 1.0, 2.0), std=(128.0, 2.0, 4.0), scale=1.0)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    expected = (pixels - np.array([127.0, 1.0, 2.0])) / np.array([128.0, 2.0, 4.0])
    np.testing.assert_allclose(preprocess.normalise(pixels), expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)


def test_exif_orientation_is_an_option(tmp_path: Path) -> None:
    image = _picture(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    as_stored, as_seen = Preprocess((20, 40), None), Preprocess((40, 20), None, exif_orientation=True)
    with Image.open(tmp_path / "turned.png") as stored:
        np.testing.assert_array_equal(as_stored.pixels(stored), np.asarray(image))
        np.testing.assert_array_equal(as_seen.pixels(stored), np.asarray(image.rotate(-90, expand=True)))


@pytest.mark.parametrize("mode", ["P", "1", "LA", "I;16"])
def test_odd_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        grey = np.asarray(_picture(20, 20, "L")).astype(np.uint16) << 8
        Image.fromarray(grey).save(tmp_path / "a.png")
        expected = np.asarray(_picture(20, 20, "L").convert("RGB"))
    else:
        _picture(20, 20, mode).save(tmp_path / "a.png")
        expected = np.asarray(_picture(20, 20, mode).convert("RGB"))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(Preprocess(20, None).pixels(image), expected)


def test_palette_with_transparency_does_not_warn(tmp_path: Path) -> None:
    image = _picture(20, 20, "P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(Preprocess(20, None).pixels(stored), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing", "small"])
def test_bad_file_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    buffer = io.BytesIO()
    _picture(64, 64).save(buffer, "JPEG")
    content = {"truncated": buffer.getvalue()[:700], "text": b"hello", "empty": b"", "small": buffer.getvalue()}
    file = tmp_path / "bad.jpg"
    if damage != "missing":
        file.write_bytes(content[damage])
    preprocess = Preprocess(224, None) if damage == "small" else Preprocess()
    with pytest.raises(DataError, match=r"bad\.jpg") as caught:
        preprocess.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings_",
    [
        {"img_size": 0},
        {"img_size": (3, -1)},
        {"resize_size": 200},
        {"resize_size": (224, 100)},
        {"interpolation": "cubic"},
        {"channel_order": "gbr"},
        {"std": (0.1, 0.0, 0.1)},
        {"mean": (0.5,)},
        {"mean": (math.nan, 0, 0)},
        {"channel_order": "grey"},
        {"scale": 0.0},
    ],
)
def test_contradictory_settings_are_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preprocess(**settings_)


def test_settings_travel(tmp_path: Path) -> None:
    preprocess = Preprocess(32, (40, 48), interpolation="bilinear_noaa")
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    changed = dataclasses.replace(preprocess, img_size=16)
    assert changed.shape == (3, 16, 16)
    _picture(50, 50).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(changed)).load(tmp_path / "a.png"), changed.load(tmp_path / "a.png")
    )


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), index=st.integers(0, 10**6))
def test_crop_box_is_inside_and_of_the_asked_shape(width: int, height: int, index: int) -> None:
    augment = Augment(seed=3)
    left, top, right, bottom = crop_box(width, height, augment, augment.generator(1, index))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) >= 100:
        share = (right - left) * (bottom - top) / (width * height)
        assert share <= 1
        squared = ((right - left) / (bottom - top)) if share > 0.05 else 1.0
        assert 0.7 < squared < 1.42  # a^2 in [3/4, 4/3], sides truncated


def test_augmentation_depends_on_seed_epoch_and_index_only() -> None:
    image = _picture(80, 60)
    preprocess = Preprocess(32, 40)

    def draw(seed: int, epoch: int, index: int, **switches: bool) -> np.ndarray[Any, Any]:
        augment = Augment(seed=seed, **switches)
        return preprocess.pixels(image, augment, augment.generator(epoch, index))

    np.testing.assert_array_equal(draw(1, 2, 3), draw(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(draw(1, 2, 3), draw(*other))
    evaluation = preprocess.pixels(image)
    np.testing.assert_array_equal(draw(0, 0, 0, random_crop=False, flip=False), evaluation)
    only_flips = [draw(0, 0, index, random_crop=False) for index in range(40)]
    flipped = sum(np.array_equal(pixels, evaluation[:, ::-1]) for pixels in only_flips)
    assert sum(np.array_equal(pixels, evaluation) for pixels in only_flips) + flipped == 40
    assert 8 < flipped < 32


def test_random_crop_is_crop_then_resize() -> None:
    image = _picture(80, 60)
    augment = Augment(flip=False)
    box = crop_box(80, 60, augment, augment.generator(0, 5))
    expected = np.asarray(image.crop(box).resize((32, 24), Image.Resampling.LANCZOS))
    got = Preprocess((24, 32), 40).pixels(image, augment, augment.generator(0, 5))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("settings_", [{"area": (0, 1)}, {"area": (0.5, 1.2)}, {"ratio": (2, 1)}, {"seed": -1}])
def test_impossible_augmentation_is_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Augment(**settings_)
