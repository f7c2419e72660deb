"""An image file becomes the model's input: decode, resize, crop, normalise."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fullquant.data.augment import Augment, crop_box
from fullquant.data.jpeg import reduce, reduction
from fullquant.data.resize import UInt8Array, bilinear_noaa
from fullquant.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float32]
Interpolation = Literal["lanczos", "bicubic", "bilinear", "hamming", "box", "nearest", "bilinear_noaa"]
ChannelOrder = Literal["rgb", "bgr", "grey"]
FastDecode = Literal["never", "training", "always"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PILLOW_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
# A filter that reads single pixels of a large image must find them: these keep the full size.
_POINT_SAMPLED = ("nearest", "bilinear_noaa")
# Modes that are resized as they are and converted afterwards, as PaddleClas's reader does; it matters for CMYK.
_RESIZED_AS_STORED = ("RGB", "L", "CMYK", "RGBA")


@dataclass(frozen=True)
class Preprocess:
    """The steps from an image file to float32 [C, H, W]; the defaults are those of PaddleClas's ImageNet reader.

    img_size: input size of the model, one number or (height, width); what is larger is cropped around its centre.
    resize_size: a number: the shorter side becomes that long, both sides rounded half to even; (height, width): exactly
        that size; None: no resizing, the centre is cropped from the image as it is.
    keep_ratio_pad: instead, the height becomes that of img_size, the width ceil(height * w / h) but at most that of
        img_size, and zeros fill the right *after* normalising (PaddleOCR's text-direction classifier).
    interpolation: a filter of Pillow (these antialias when shrinking), or `bilinear_noaa`: OpenCV's INTER_LINEAR.
    mean, std, scale: y = (x * scale - mean) / std per channel, x in 0..255, in the order of `channel_order`.
    channel_order: rgb, bgr, or grey (one channel; mean and std then have one number).
    exif_orientation: turn the image as its EXIF tag says; PaddleClas's reader (Pillow) does not.
    fast_decode: where large JPEGs are decoded at a fraction of their size (`jpeg.reduce`), the largest factor at which
        what is resized still has at least the pixels of the result: "training" (random crops), "always" (evaluation
        too, which then no longer gives PaddleClas's pixels), "never". Not with filters that don't antialias, nor with
        exif_orientation.
    """

    img_size: int | tuple[int, int] = 224
    resize_size: int | tuple[int, int] | None = 256
    keep_ratio_pad: bool = False
    interpolation: Interpolation = "lanczos"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255
    channel_order: ChannelOrder = "rgb"
    exif_orientation: bool = False
    fast_decode: FastDecode = "training"
    height: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    _gain: FloatArray = field(init=False, repr=False, compare=False)
    _offset: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        height, width = _pair(self.img_size, "img_size")
        object.__setattr__(self, "height", height)
        object.__setattr__(self, "width", width)
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(get_args(Interpolation))}"
            )
        if self.channel_order not in get_args(ChannelOrder):
            raise ConfigError(f"channel_order {self.channel_order!r} is not one of {', '.join(get_args(ChannelOrder))}")
        if self.fast_decode not in get_args(FastDecode):
            raise ConfigError(f"fast_decode {self.fast_decode!r} is not one of {', '.join(get_args(FastDecode))}")
        self._check_resize()
        self._precompute()

    def _check_resize(self) -> None:
        if self.resize_size is None or self.keep_ratio_pad:
            return
        if isinstance(self.resize_size, int):
            enough = self.resize_size >= max(self.height, self.width)
        else:
            high, wide = _pair(self.resize_size, "resize_size")
            enough = high >= self.height and wide >= self.width
        if not enough:
            raise ConfigError(
                f"resize_size {self.resize_size} is smaller than img_size {self.img_size}: nothing is left to crop from"
            )

    def _precompute(self) -> None:
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        if mean.shape != (self.channels,) or std.shape != (self.channels,):
            raise ConfigError(
                f"mean {self.mean} and std {self.std} must have {self.channels} number(s) each "
                f"(channel_order is {self.channel_order})"
            )
        if not (np.all(np.isfinite(mean)) and np.all(std > 0) and np.all(np.isfinite(std)) and self.scale > 0):
            raise ConfigError(f"mean {self.mean} must be finite, std {self.std} and scale {self.scale} must be > 0")
        object.__setattr__(self, "_gain", (self.scale / std).astype(np.float32)[:, None, None])
        object.__setattr__(self, "_offset", (-mean / std).astype(np.float32)[:, None, None])

    @property
    def channels(self) -> int:
        """Number of channels of the model's input."""
        return 1 if self.channel_order == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what comes out."""
        return self.channels, self.height, self.width

    @classmethod
    def text_line(cls, height: int = 48, width: int = 192) -> Preprocess:
        """The preprocessing of PaddleOCR's text-direction classifier: values in [-1, 1], zeros on the right."""
        half = (0.5, 0.5, 0.5)
        return cls(
            img_size=(height, width),
            resize_size=None,
            keep_ratio_pad=True,
            interpolation="bilinear_noaa",
            mean=half,
            std=half,
        )

    def pixels(
        self, image: Image.Image, augment: Augment | None = None, random: np.random.Generator | None = None
    ) -> UInt8Array:
        """The resized and cropped pixels, uint8 [h, w, C] in channel order: [H, W, C], or narrower before padding."""
        if self.exif_orientation:
            image = ImageOps.exif_transpose(image)
        if image.mode not in _RESIZED_AS_STORED:
            image = _eight_bit(image)
        if augment is not None and random is not None and augment.random_crop:
            pixels = self._cropped(image, crop_box(image.width, image.height, augment, random))
        else:
            pixels = self._evaluation_geometry(image)
        if augment is not None and random is not None and augment.flip and random.integers(0, 2) == 1:
            pixels = pixels[:, ::-1]
        return pixels[:, :, ::-1] if self.channel_order == "bgr" else pixels

    def normalise(self, pixels: UInt8Array, out: FloatArray | None = None) -> FloatArray:
        """(x * scale - mean) / std of uint8 [h, w, C], as float32 [C, H, W]; zeros fill the width."""
        if out is None:
            out = np.empty(self.shape, np.float32)
        width = pixels.shape[1]
        for channel in range(self.channels):  # one at a time: it stays in the processor's cache between the two steps
            inside = out[channel, :, :width]
            np.multiply(pixels[:, :, channel], self._gain[channel], out=inside)
            np.add(inside, self._offset[channel], out=inside)
        out[:, :, width:] = 0
        return out

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        augment: Augment | None = None,
        random: np.random.Generator | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Read one file into float32 [C, H, W], contiguous; `out`, if given, receives and is the result.

        Raises DataError naming the file if it is missing, damaged, truncated, or too small for the crop.
        """
        try:
            with Image.open(path) as image:
                pixels = self.pixels(image, augment, random)
        except MemoryError:
            raise
        except DataError as error:
            raise DataError(f"image {os.fspath(path)}: {error}") from None
        except FileNotFoundError:
            raise DataError(
                f"image {os.fspath(path)} does not exist; correct the list, or set on_bad_image to 'skip'"
            ) from None
        except Exception as error:  # Pillow's decoders raise nearly every class of exception on damaged files
            raise DataError(
                f"image {os.fspath(path)} cannot be read: {_one_line(error)}; "
                "repair or remove it, or set on_bad_image to 'skip'"
            ) from error
        return self.normalise(pixels, out)

    def _evaluation_geometry(self, image: Image.Image) -> UInt8Array:
        if self.keep_ratio_pad:
            width = min(self.width, math.ceil(self.height * image.width / float(image.height)))
            return self._shrunk(image, self.height, width)
        if self.resize_size is None:
            return self._centre(self._converted(image))
        if isinstance(self.resize_size, int):
            factor = self.resize_size / min(image.width, image.height)
            height, width = round(image.height * factor), round(image.width * factor)
        else:
            height, width = self.resize_size
        return self._centre(self._shrunk(image, height, width))

    def _shrunk(self, image: Image.Image, height: int, width: int) -> UInt8Array:
        """The whole image at [height, width]."""
        whole = (0, 0, image.width, image.height)
        factor = self._reduced(image, whole, height, width) if self.fast_decode == "always" else 1
        if factor == 1:
            return self._resized(image, height, width)
        return self._resized_part(image, whole, factor, height, width)

    def _cropped(self, image: Image.Image, box: tuple[int, int, int, int]) -> UInt8Array:
        """The part inside `box` at the input's size."""
        factor = self._reduced(image, box, self.height, self.width) if self.fast_decode != "never" else 1
        if factor == 1:
            return self._resized(image.crop(box), self.height, self.width)
        return self._resized_part(image, box, factor, self.height, self.width)

    def _reduced(self, image: Image.Image, box: tuple[int, int, int, int], height: int, width: int) -> int:
        """Choose the size at which the image is decoded, so that `box` keeps [height, width] pixels; the factor."""
        if self.exif_orientation or self.interpolation in _POINT_SAMPLED:
            return 1
        return reduce(image, reduction(box[2] - box[0], box[3] - box[1], width, height))

    def _resized_part(
        self, image: Image.Image, box: tuple[int, int, int, int], factor: int, height: int, width: int
    ) -> UInt8Array:
        """The part inside `box` (in pixels of the full size) of an image reduced by `factor`, at [height, width]."""
        left, top, right, bottom = (edge / factor for edge in box)
        part = image.resize((width, height), _PILLOW_FILTERS[self.interpolation], box=(left, top, right, bottom))
        return self._converted(part)

    def _resized(self, image: Image.Image, height: int, width: int) -> UInt8Array:
        if self.interpolation == "bilinear_noaa":
            return bilinear_noaa(self._converted(image), height, width)
        return self._converted(image.resize((width, height), _PILLOW_FILTERS[self.interpolation]))

    def _converted(self, image: Image.Image) -> UInt8Array:
        mode = "L" if self.channel_order == "grey" else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def _centre(self, pixels: UInt8Array) -> UInt8Array:
        """The middle [H, W] of the pixels; an odd border is larger at the right and bottom by one pixel."""
        high, wide = pixels.shape[:2]
        if high < self.height or wide < self.width:
            raise DataError(
                f"its {wide}x{high} pixels are fewer than the input's {self.width}x{self.height}; "
                "give resize_size so that images are enlarged"
            )
        top, left = (high - self.height) // 2, (wide - self.width) // 2
        return pixels[top : top + self.height, left : left + self.width]


def _pair(size: int | tuple[int, int], name: str) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ConfigError(f"{name} {size} must be one whole number > 0, or two: [height, width]")
    return height, width


def _eight_bit(image: Image.Image) -> Image.Image:
    """Palettes, bit maps and 16-bit greys as 8-bit RGB (Pillow's own conversion clips 16-bit greys to white)."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int32), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
