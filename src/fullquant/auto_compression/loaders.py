"""From the Global section to image loaders, and from any training data to batches by epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fullquant.config import Global
from fullquant.data import Augment, ImageList, ImageLoader, Preprocess, as_feeds, find_images, read_list
from fullquant.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float32]


def preprocess_of(settings: Global) -> Preprocess:
    """The preprocessing that the configuration describes."""
    return Preprocess(
        img_size=settings.img_size,
        resize_size=settings.resize_size,
        keep_ratio_pad=settings.keep_ratio_pad,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        scale=settings.scale,
        channel_order=settings.channel_order,
    )


def augment_of(settings: Global) -> Augment | None:
    """The random changes of training images; None where there are none."""
    crop, flip = settings.augment.crop == "random_resized", settings.augment.flip
    if not (crop or flip):
        return None
    return Augment(
        random_crop=crop, flip=flip, area=settings.augment.area, ratio=settings.augment.ratio, seed=settings.seed
    )


def images_of_split(settings: Global, split: str) -> ImageList:
    """The training ("train") or validation ("val") images of Global.data_dir. DataError says what was looked for."""
    folder = settings.data_dir
    if folder is None:
        raise ConfigError("Global.data_dir is not given: the folder of the images")
    name = settings.train_list if split == "train" else settings.val_list
    if name is not None:
        return read_list(name, root=folder)
    return find_images(folder, "train" if split == "train" else "val")


def train_loader(settings: Global) -> ImageLoader:
    """Shuffled, augmented training batches; the last, smaller batch of an epoch is left out."""
    return ImageLoader(
        images_of_split(settings, "train"), preprocess_of(settings), settings.batch_size, augment=augment_of(settings),
        shuffle=True, seed=settings.seed, drop_last=True, workers=settings.workers, on_bad_image=settings.on_bad_image,
    )  # fmt: skip


def validation_loader(settings: Global, total_images: int | None = None) -> ImageLoader:
    """All validation images in order, or the first `total_images` of them."""
    images = images_of_split(settings, "val")
    if total_images is not None and total_images < len(images):
        images = images.subset(np.arange(total_images))
    return ImageLoader(
        images,
        preprocess_of(settings),
        settings.batch_size,
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
    )


class TrainingData:
    """Any training data as batches of images, by epoch, from any position."""

    def __init__(self, source: Any, input_name: str) -> None:
        self.source = source
        self.feeds = as_feeds(source, input_name)

    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch; None where the source does not know."""
        try:
            return len(self.source) if isinstance(self.source, ImageLoader) else len(self.feeds)
        except TypeError:
            return None

    def batches(self, epoch: int, start: int) -> Iterator[FloatArray]:
        """The images of an epoch from batch `start` on; a user's own loader is read up to there and skipped."""
        if isinstance(self.source, ImageLoader):
            self.source.set_epoch(epoch, start_batch=start)
            yield from (images for images, _ in self.source)
            return
        yield from (images for images, _ in itertools.islice(self.feeds.batches(), start, None))

    def calibration(self, count: int | None) -> list[FloatArray]:
        """`count` images (all, where None) in batches: without augmentation where the source is our own loader."""
        batches: list[FloatArray] = []
        seen = 0
        for images in self._calibration_batches(count):
            batches.append(np.array(images))
            seen += len(images)
            if count is not None and seen >= count:
                break
        if not batches:
            raise DataError("the training data gives no image to calibrate with")
        return batches

    def _calibration_batches(self, count: int | None) -> Iterator[FloatArray]:
        if not isinstance(self.source, ImageLoader):
            yield from (images for images, _ in self.feeds.batches())
            return
        images = self.source.images
        if count is not None and count < len(images):
            images = images.sample(count, seed=0)
        plain = ImageLoader(
            images, self.source.preprocess, min(32, len(images)), workers=self.source.workers, on_bad_image="skip"
        )
        with plain:
            yield from (batch for batch, _ in plain)
