"""Random crops and flips for training, each a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fullquant.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """What is drawn at random for a training image; the defaults are those of PaddleClas's ImageNet reader.

    random_crop: cut a random part and resize it to the input size; without it the evaluation geometry is used.
    flip: mirror left to right with probability 1/2.
    area: smallest and largest share of the image's area that a crop covers.
    ratio: smallest and largest square of the crop's aspect factor (see `crop_box`).
    versions: how many different draws an image has: epoch e has those of epoch e modulo versions; None: no two alike.
    seed: together with the epoch and the image's index it fixes every draw, whatever the number of workers.
    """

    random_crop: bool = True
    flip: bool = True
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    seed: int = 0
    versions: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"crop area {self.area} must be two shares with 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"crop ratio {self.ratio} must be two numbers with 0 < smallest <= largest")
        if self.versions is not None and self.versions < 1:
            raise ConfigError(f"augment versions {self.versions} must be at least 1, or none")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} must not be negative")

    def generator(self, epoch: int, index: int) -> np.random.Generator:
        """The random numbers of one image in one epoch: the crop is drawn first, then the flip."""
        return np.random.default_rng((self.seed, epoch if self.versions is None else epoch % self.versions, index))


def crop_box(width: int, height: int, augment: Augment, random: np.random.Generator) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom), inside an image of width x height pixels.

    With r uniform in `ratio` and a = sqrt(r), the crop is s * a wide and s / a high, where s^2 is a share of the
    image's area, uniform in `area` after both ends are lowered to what still fits:
    min(width / height / a^2, height / width * a^2). Sides are truncated to whole pixels, at least 1.
    Source: random_crop of PaddleClas's and PaddleSlim's imagenet_reader.py.
    """
    aspect = math.sqrt(random.uniform(*augment.ratio))
    fits = min(width / height / aspect**2, height / width * aspect**2)
    share = random.uniform(min(augment.area[0], fits), min(augment.area[1], fits))
    side = math.sqrt(width * height * share)
    crop_width = min(width, max(1, int(side * aspect)))
    crop_height = min(height, max(1, int(side / aspect)))
    left = int(random.integers(0, width - crop_width + 1))
    top = int(random.integers(0, height - crop_height + 1))
    return left, top, left + crop_width, top + crop_height
