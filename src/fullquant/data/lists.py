"""Which images there are and their labels: PaddleClas list files, class folders, flat folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fullquant.data.list_parser import parse_list
from fullquant.data.shared_list import parse_list_once
from fullquant.errors import DataError

UNLABELLED = -1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})

Split = Literal["train", "val"]


@dataclass(frozen=True, eq=False)
class ImageList:
    """Image paths and labels, kept as one byte buffer and NumPy arrays: 16 bytes an image beside the path itself.

    root: folder that the paths are relative to.
    source: where the list came from, for messages.
    labels: int32 [n], UNLABELLED (-1) where nothing is known.
    classes: class names by label, for class folders; else empty.
    """

    root: Path
    source: str
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...] = ()
    _text: npt.NDArray[np.uint8] = field(repr=False, kw_only=True)
    _starts: npt.NDArray[np.int64] = field(repr=False, kw_only=True)
    _lengths: npt.NDArray[np.int32] = field(repr=False, kw_only=True)

    @classmethod
    def from_paths(
        cls,
        root: str | os.PathLike[str],
        paths: Iterable[str | bytes],
        labels: Sequence[int] | npt.NDArray[np.int32] | None = None,
        *,
        source: str = "",
        classes: Sequence[str] = (),
    ) -> ImageList:
        """A list from paths (relative to `root`, or absolute); without labels all are UNLABELLED."""
        names = [path if isinstance(path, bytes) else os.fsencode(path) for path in paths]
        known = np.full(len(names), UNLABELLED, np.int32) if labels is None else np.asarray(labels, np.int32)
        if known.shape != (len(names),):
            raise DataError(f"{source or root}: {len(names)} paths, but labels of shape {known.shape}")
        return cls.from_text(Path(root), b"".join(names), _sizes(names), known, source or str(root), tuple(classes))

    @classmethod
    def from_text(
        cls,
        root: Path,
        text: bytes | bytearray,
        lengths: npt.NDArray[np.int32],
        labels: npt.NDArray[np.int32],
        source: str,
        classes: tuple[str, ...] = (),
    ) -> ImageList:
        """A list from the paths one behind the other, without separators, and their lengths in bytes."""
        starts = np.zeros(len(lengths), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        characters = np.frombuffer(text, np.uint8)
        return cls(root, source, labels, classes, _text=characters, _starts=starts, _lengths=lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def relative_path(self, index: int) -> str:
        """The path as the list has it."""
        start = self._starts[index]
        return os.fsdecode(self._text[start : start + self._lengths[index]].tobytes())

    def path(self, index: int) -> str:
        """The path below `root`, or as it is where the list has an absolute one."""
        return os.path.join(self.root, self.relative_path(index))

    def label(self, index: int) -> int:
        """The label of one image."""
        return int(self.labels[index])

    @property
    def labelled(self) -> int:
        """How many images have a label."""
        return int(np.count_nonzero(self.labels != UNLABELLED))

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> ImageList:
        """The images at `indices`, in that order; the text of the paths is shared, for a rising range everything is."""
        chosen: slice | npt.NDArray[np.intp]
        if isinstance(indices, range) and 0 <= indices.start <= indices.stop <= len(self) and indices.step > 0:
            chosen = slice(indices.start, indices.stop, indices.step)
        else:
            chosen = np.asarray(indices, np.intp)
        return ImageList(
            self.root,
            self.source,
            self.labels[chosen],
            self.classes,
            _text=self._text,
            _starts=self._starts[chosen],
            _lengths=self._lengths[chosen],
        )

    def spread(self, count: int, seed: int = 0) -> ImageList:
        """`count` images spread evenly over the list: one, drawn at random, of each of `count` equal parts, in order.

        In a list sorted by class every class gets its share; drawing keeps a list in which the classes take turns
        from giving the same class each time, as a fixed step would. All images if there are fewer than `count`.
        """
        if count >= len(self):
            return self
        edges = np.arange(count + 1, dtype=np.int64) * len(self) // max(count, 1)
        return self.subset(np.random.default_rng(seed).integers(edges[:-1], edges[1:]))


def read_list(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    shared: str | os.PathLike[str] | None = None,
) -> ImageList:
    """Read a PaddleClas list file: a line is "relative/path label", the label being the last field.

    Paths may contain spaces; blank lines, CRLF, tabs and a byte-order mark are tolerated. `root` defaults to the
    folder of the list. Raises DataError with file:line for a line that is not so, if nothing is listed, or if none of
    a few listed images exists.
    shared: a folder for the parsed list, `shared_list.default_folder()` as a rule: of the processes of a machine that
        name the same one, the first parses, and all map the same memory. None: parsed into this process's memory.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"image list {file} does not exist")
    parsed = parse_list(file) if shared is None else parse_list_once(file, Path(shared))
    folder = file.parent if root is None else Path(root)
    images = ImageList(
        folder, str(file), parsed.labels, _text=parsed.text, _starts=parsed.starts, _lengths=parsed.lengths
    )
    _check_some_exist(images)
    return images


def read_class_folders(folder: str | os.PathLike[str], classes: Sequence[str] | None = None) -> ImageList:
    """Images of `<folder>/<class>/...`; label k is the k-th name of `classes`, by default the sorted subfolder names.

    Give the classes of the training folder to read the validation folder, so that a class without validation
    images does not shift the labels. Raises DataError for a subfolder that is not among the classes.
    """
    root = Path(folder)
    present = _class_names(root)
    names = present if classes is None else list(classes)
    label_of = {name: label for label, name in enumerate(names)}
    unknown = [name for name in present if name not in label_of]
    if unknown:
        raise DataError(f"class folder {root / unknown[0]} has no counterpart among the {len(names)} training classes")
    text = bytearray()  # bytes, not a list of texts: a path then takes no more than its letters
    lengths: list[npt.NDArray[np.int32]] = []
    labels: list[npt.NDArray[np.int32]] = []
    for name in present:
        found = [os.fsencode(f"{name}/{image}") for image in _image_names(root / name)]
        text += b"".join(found)
        lengths.append(_sizes(found))
        labels.append(np.full(len(found), label_of[name], np.int32))
    if not text:
        raise DataError(f"no images in the class folders under {root} ({_suffixes()})")
    return ImageList.from_text(root, text, np.concatenate(lengths), np.concatenate(labels), str(root), tuple(names))


def read_flat_folder(folder: str | os.PathLike[str]) -> ImageList:
    """The images directly in a folder, by name, without labels: enough to calibrate and to distil."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"image folder {root} does not exist")
    names = _image_names(root)
    if not names:
        raise DataError(f"no images in {root} ({_suffixes()})")
    return ImageList.from_paths(root, names, source=str(root))


def find_images(
    data_dir: str | os.PathLike[str], split: Split, *, shared: str | os.PathLike[str] | None = None
) -> ImageList:
    """The training or validation images of a data set folder, in whichever of these forms is found first.

    1. `<split>_list.txt`, a PaddleClas list; 2. `<split>/<class>/*.jpg`; 3. `<split>/*.jpg` without labels;
    and, for training only, in `data_dir` itself: 4. `<class>/*.jpg`; 5. `*.jpg` without labels.
    shared: as in `read_list`, for the first form. Raises DataError saying what was looked for.
    """
    root = Path(data_dir)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {what} (Global.data_dir)")
    list_file, folder = root / f"{split}_list.txt", root / split
    if list_file.is_file():
        return read_list(list_file, shared=shared)
    if folder.is_dir():
        return read_folder(folder, root / "train" if split == "val" else None)
    if split == "train" and (_class_names(root) or _image_names(root)):
        return read_folder(root)
    also = " or images" if split == "train" else ""
    raise DataError(f"no {split} images in {root}: looked for {list_file.name} and the folder {split}/{also}")


def read_folder(folder: str | os.PathLike[str], training: str | os.PathLike[str] | None = None) -> ImageList:
    """The class folders in a folder, or, where it has none, the images directly in it, unlabelled.

    training: the folder whose class folders number the labels, where it exists and has any. Raises DataError.
    """
    root, first = Path(folder), None if training is None else Path(training)
    if not _class_names(root):
        return read_flat_folder(root)
    return read_class_folders(root, (_class_names(first) or None) if first is not None and first.is_dir() else None)


def _class_names(folder: Path) -> list[str]:
    """Sorted names of the subfolders that hold images, train and val aside."""
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if _has_images(folder / name)]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _image_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    """Hidden files are none: macOS puts a ._a.jpg, which is no JPEG, beside each a.jpg on foreign disks."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _sizes(names: Sequence[bytes]) -> npt.NDArray[np.int32]:
    return np.fromiter((len(name) for name in names), np.int32, len(names))


def _suffixes() -> str:
    return "looked for " + ", ".join(sorted(IMAGE_SUFFIXES))


def _check_some_exist(images: ImageList, probes: int = 16) -> None:
    """A wrong root is said at once, not after a start-up of minutes; single missing files are the loader's business."""
    indices = np.unique(np.linspace(0, len(images) - 1, probes).astype(np.intp))
    if not any(os.path.exists(images.path(int(index))) for index in indices):
        raise DataError(
            f"{images.source}: the images are not under {images.root} (the first is {images.path(0)[:200]})"
        )
