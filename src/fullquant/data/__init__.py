"""Images from disk to batches. Imports NumPy and Pillow only: the worker processes load this package."""

from fullquant.data.augment import Augment
from fullquant.data.feeds import Feeds, as_feeds
from fullquant.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fullquant.data.lists import (
    UNLABELLED,
    ImageList,
    find_images,
    read_class_folders,
    read_flat_folder,
    read_folder,
    read_list,
)
from fullquant.data.loader import ImageLoader

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "UNLABELLED",
    "Augment",
    "Feeds",
    "ImageList",
    "ImageLoader",
    "Preprocess",
    "as_feeds",
    "find_images",
    "read_class_folders",
    "read_flat_folder",
    "read_folder",
    "read_list",
]
