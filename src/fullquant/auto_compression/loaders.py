"""From the Global section to image loaders, and from any training data to batches by epoch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from fullquant.config import Global
from fullquant.data import (
    UNLABELLED,
    Augment,
    ImageList,
    ImageLoader,
    Preprocess,
    as_feeds,
    find_images,
    read_folder,
    read_list,
)
from fullquant.data.feeds import Feeds
from fullquant.data.shared_list import default_folder
from fullquant.distributed import ALONE, World
from fullquant.errors import ConfigError, DataError, FullquantError
from fullquant.graph.layout import TO_FIRST, is_channels_last

FloatArray = npt.NDArray[np.float32]
log = logging.getLogger("fullquant")

_CALIBRATION_BATCH = 32
# Images that tell whether all have the size of the model's input.
_LOOKED_AT = 8


def preprocess_of(settings: Global) -> Preprocess:
    """The preprocessing that the configuration describes, with the defaults of keys that are left to the model."""
    settings = settings.for_image()
    assert settings.img_size is not None
    assert settings.resize_size != "auto"
    assert settings.channel_order is not None
    return Preprocess(
        img_size=settings.img_size,
        resize_size=settings.resize_size,
        keep_ratio_pad=settings.keep_ratio_pad,
        interpolation=settings.interpolation,
        mean=settings.per_channel("mean"),
        std=settings.per_channel("std"),
        scale=settings.scale,
        channel_order=settings.channel_order,
        fast_decode=settings.fast_decode,
    )


def augment_of(settings: Global) -> Augment | None:
    """The random changes of training images; None where there are none."""
    crop, flip = settings.augment.crop == "random_resized", settings.augment.flip
    if not (crop or flip):
        return None
    return Augment(
        random_crop=crop,
        flip=flip,
        area=settings.augment.area,
        ratio=settings.augment.ratio,
        seed=settings.seed,
        versions=settings.augment.versions,
    )


def images_of_split(settings: Global, split: Literal["train", "val"], world: World = ALONE) -> ImageList:
    """The images of Global.data_dir to train on ("train") or to validate on ("val"). DataError says what is missing.

    Global.train_list and val_list, a list file or a folder, are relative to data_dir; so are the paths in a list.
    """
    if settings.data_dir is None:
        raise ConfigError("Global.data_dir is not given: the folder of the images")
    folder = Path(settings.data_dir)
    shared = default_folder() if world.local_size > 1 else None  # parsed once for the processes of this machine
    name = settings.train_list if split == "train" else settings.val_list
    if name is None:
        return find_images(folder, split, shared=shared)
    place = folder / name
    if place.is_dir():
        return read_folder(place, folder / (settings.train_list or "train") if split == "val" else None)
    if not place.is_file():
        raise DataError(f"image list {place} does not exist (Global.{split}_list, relative to Global.data_dir)")
    return read_list(place, root=folder, shared=shared)


def free_or_fixed(value: ir.Value) -> tuple[int | None, ...] | None:
    """The shape of a graph's input or output, None where a size is free; None where the file has no shape."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape)


def image_sizes(value: ir.Value) -> tuple[int | None, ...] | None:
    """`free_or_fixed` of a file's image input as [N, C, H, W], also where the file takes it as [N, H, W, C]."""
    sizes = free_or_fixed(value)
    return tuple(sizes[axis] for axis in TO_FIRST) if sizes is not None and is_channels_last(sizes) else sizes


def with_image(settings: Global, image: Sequence[int | None] | None, model: str | Path) -> Global:
    """The section with img_size and channel_order of the model where they are not given, which the log says.

    image: [C, H, W] of the model's input, None where free. Global.input_shape comes first. See `Global.for_image`; but
    where the images have the model's size already, `resize_size: auto` leaves them as they are.
    """
    sizes: Sequence[int | None] = image if image is not None and len(image) == 3 else (None, None, None)
    if settings.input_shape is not None:
        sizes = [given if given > 0 else own for given, own in zip(settings.input_shape[1:], sizes, strict=True)]
    found = settings.for_image(*sizes)
    if settings.img_size is None and found.img_size is not None:
        reason = f"the input of {model}" if found.img_size == tuple(sizes[1:]) else f"{model} leaves them free"
        resized = "" if found.keep_ratio_pad else f", resize_size {_shown(found.resize_size)}"
        if settings.resize_size == "auto" and _have_size(settings, found.img_size):
            found = replace(found, resize_size=found.img_size)
            resized = ", which the images have already"
        log.info("Global.img_size is not given: %s (%s)%s", _shown(found.img_size), reason, resized)
    if settings.channel_order is None and found.channel_order == "grey":
        log.info("Global.channel_order is not given: grey, the input of %s has one channel", model)
    return found


def _have_size(settings: Global, size: tuple[int, int]) -> bool:
    """Whether images, a few of the validation list or else of the training list, have this (height, width) in the file.

    False where there is none that can be read: the loaders say so.
    """
    splits: tuple[Literal["val", "train"], ...] = ("val", "train")
    for split in splits:
        try:
            images = images_of_split(settings, split).spread(_LOOKED_AT)
            sizes = {_size_of(images.path(index)) for index in range(len(images))}
        except (FullquantError, OSError):
            continue
        return sizes == {size}
    return False


def _size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def _shown(size: object) -> str:
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size).lower()


def check_images(loader: ImageLoader, image: Sequence[int | None] | None, model: str | Path) -> None:
    """ConfigError where the images are not of the shape that the model takes: [C, H, W], None where free."""
    shape = loader.preprocess.shape
    if image is None:
        return
    if len(image) != len(shape) or any(want not in (None, size) for want, size in zip(image, shape, strict=True)):
        shown = ["any" if size is None else size for size in image]
        raise ConfigError(
            f"the images become {list(shape)} (channels, height, width), but the input of {model} is {shown}; "
            "set Global.img_size (with resize_size) and Global.channel_order"
        )


def check_pixels(loader: ImageLoader, model: str | Path) -> None:
    """ConfigError unless a model that takes uint8 images gets the pixels as they are."""
    made = loader.preprocess
    if any(made.mean) or any(part != 1 for part in made.std) or made.scale != 1:
        raise ConfigError(
            f"{model} takes the pixels of images as they are (uint8) and normalises them itself; set Global.mean: 0, "
            "std: 1 and scale: 1 (--mean 0 --std 1 --scale 1)"
        )


def check_labels(loader: ImageLoader, classes: int | None, model: str | Path) -> None:
    """DataError where a label is beyond the model's classes, which count from 0."""
    largest = int(loader.images.labels.max(initial=UNLABELLED))
    if classes is not None and largest >= classes:
        raise DataError(
            f"{loader.images.source}: label {largest} does not fit {model}, whose {classes} classes are 0 to "
            f"{classes - 1}; give the list that belongs to the model"
        )


def train_loader(settings: Global, world: World = ALONE) -> ImageLoader:
    """Shuffled, augmented training batches of this process; the last, smaller batch of an epoch is left out."""
    return ImageLoader(
        images_of_split(settings, "train", world), preprocess_of(settings), settings.batch_size,
        augment=augment_of(settings), shuffle=True, seed=settings.seed, drop_last=True, workers=settings.workers,
        on_bad_image=settings.on_bad_image, rank=world.rank, world=world.size,
    )  # fmt: skip


def validation_loader(settings: Global, total_images: int | None = None, world: World = ALONE) -> ImageLoader:
    """All validation images in order, or `total_images` of them, spread evenly over the list (the same each time).

    With several processes, this one's share of them.
    """
    images = images_of_split(settings, "val", world)
    if total_images is not None:
        images = images.spread(total_images)
    return ImageLoader(
        images,
        preprocess_of(settings),
        settings.batch_size,
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
        rank=world.rank,
        world=world.size,
    )


def share_of(loader: ImageLoader, world: World) -> ImageLoader:
    """The loader, where it deals out its images to the processes already; else one of this process's share."""
    if loader.sampling.world == world.size:
        return loader
    return loader.over(loader.images.subset(range(world.rank, len(loader.images), world.size)))


@dataclass(frozen=True)
class DealtBatches:
    """(images, labels) of a user's own loader, as often as asked; with several processes every size-th batch."""

    feeds: Feeds
    world: World = ALONE

    def __iter__(self) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        return itertools.islice(self.feeds.batches(), self.world.rank, None, self.world.size)


@dataclass(frozen=True)
class FirstImages:
    """The (images, labels) of `batches` up to `count` images, as often as asked; the last batch is cut."""

    batches: Iterable[tuple[FloatArray, npt.NDArray[np.int64]]]
    count: int

    def __iter__(self) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        left = self.count
        batches = iter(self.batches)
        while left > 0 and (batch := next(batches, None)) is not None:
            images, labels = batch
            yield images[:left], labels[:left]
            left -= len(images)


def pool_skipped(loader: ImageLoader, world: World) -> None:
    """Makes `loader.skipped` the number of files that were unreadable in any process; a file counts once."""
    # Several processes meet the same file in different epochs: their counts cannot be added, only their paths united.
    for paths in world.gather(loader.skipped_paths):
        loader.count_skipped(paths)


class TrainingData:
    """Any training data as batches of images, by epoch, from any position.

    image: what one image must look like, [C, H, W], None where free.
    """

    def __init__(self, source: Any, input_name: str, image: Sequence[int | None] | None = None) -> None:
        self.source = source
        self.feeds = as_feeds(source, input_name, image)

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

    def calibration(self, count: int | None, world: World = ALONE) -> list[FloatArray]:
        """`count` images (all, where None) in batches: without augmentation where the source is our own loader.

        All processes get the same list. Our own loader reads it in each; a user's own loader has other batches in each
        process: those of one turn together are one batch, as one process would have it.
        """
        if world.alone or isinstance(self.source, ImageLoader):
            return self._calibration(count)
        own = None if count is None else -(-count // world.size)
        return _first_images(_turns(world.gather(self._calibration(own))), count)

    def _calibration(self, count: int | None) -> list[FloatArray]:
        batches = _first_images(self._calibration_batches(count), count)
        if not batches:
            raise DataError("the training data gives no image to calibrate with")
        return batches

    def _calibration_batches(self, count: int | None) -> Iterator[FloatArray]:
        if not isinstance(self.source, ImageLoader):
            yield from (images for images, _ in self.feeds.batches())
            return
        images = self.source.images
        if count is not None and count < len(images):
            images = images.spread(count)
        with self.source.over(images, min(_CALIBRATION_BATCH, len(images))) as plain:
            yield from (batch for batch, _ in plain)


def _turns(shares: Sequence[Sequence[FloatArray]]) -> Iterator[FloatArray]:
    """The k-th batches of all processes as one; by themselves where the images differ in size."""
    for turn in itertools.zip_longest(*shares):
        batches = [batch for batch in turn if batch is not None]
        if len({batch.shape[1:] for batch in batches}) == 1:
            yield np.concatenate(batches)
        else:
            yield from batches


def _first_images(batches: Iterable[FloatArray], count: int | None) -> list[FloatArray]:
    """Copies of the first batches, up to the one that completes `count` images."""
    found: list[FloatArray] = []
    seen = 0
    for images in batches:
        found.append(np.array(images))
        seen += len(images)
        if count is not None and seen >= count:
            break
    return found
