"""What users' data loaders yield, brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fullquant.data.lists import UNLABELLED
from fullquant.errors import DataError

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]
Source = Iterable[Any] | Callable[[], Iterable[Any]]

_LABEL_NAMES = ("label", "labels", "target", "y")


@dataclass(frozen=True, eq=False)
class Feeds:
    """Iterates over {input name: float32 array}; `batches` gives (images, labels) instead. See `as_feeds`."""

    source: Source
    input_name: str
    shape: tuple[int | None, ...] | None = None

    def __iter__(self) -> Iterator[dict[str, FloatArray]]:
        for images, _ in self.batches():
            yield {self.input_name: images}

    def __len__(self) -> int:
        """Batches, where the source knows (TypeError where it does not, as for any generator)."""
        return len(cast(Sequence[Any], self.source))

    def batches(self) -> Iterator[tuple[FloatArray, LabelArray]]:
        """(images float32 [B, ...], labels int64 [B]); the labels are -1 where the source has none."""
        number = -1
        for number, item in enumerate(self._fresh()):
            where = f"batch {number} of the data loader"
            image, label = _image_and_label(item, self.input_name, where)
            images = _images(image, self.input_name, self.shape, where)
            yield images, _labels(label, len(images), where)
        if number < 0:
            raise DataError(
                "the data loader yields nothing; one that can be read only once (a generator) must be given as a "
                "function that returns a new one"
            )

    def _fresh(self) -> Iterator[Any]:
        source = self.source() if callable(self.source) and not hasattr(self.source, "__iter__") else self.source
        if not hasattr(source, "__iter__"):
            raise DataError(f"the data loader is a {type(source).__name__}: expected an iterable, or a function of one")
        return iter(cast(Iterable[Any], source))


def as_feeds(source: Source, input_name: str, shape: Sequence[int | None] | None = None) -> Feeds:
    """Normalise a data loader to {input_name: float32 NumPy array}.

    source: an iterable, or a function without arguments that returns one (as PaddleSlim's examples have it), of
        dictionaries by input name, lists of one dictionary, (image, label) pairs, or arrays alone. Arrays are
        NumPy's, or any tensor with `.numpy()` (torch, Paddle).
    shape: what one image must look like, [C, H, W] without the batch axis; None or -1 means any size.
    Raises DataError, while iterating, saying which batch differs, what was expected and what came.
    """
    return Feeds(source, input_name, None if shape is None else tuple(shape))


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """A NumPy array from an array, a torch or Paddle tensor (on any device, with gradient or not), or nested lists."""
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if hasattr(value, step) else value
    if not hasattr(value, "numpy"):
        return np.asarray(value)
    try:
        return np.asarray(value.numpy())
    except TypeError:  # bfloat16 tensors of torch have no NumPy type
        return np.asarray(value.float().numpy())


def _image_and_label(item: Any, input_name: str, where: str) -> tuple[Any, Any]:
    if isinstance(item, (list, tuple)):
        if len(item) == 1 and isinstance(item[0], Mapping):
            item = item[0]
        elif len(item) in (1, 2):
            return item[0], item[1] if len(item) == 2 else None
        else:
            raise DataError(
                f"{where} is a {type(item).__name__} of {len(item)}: expected (image, label) or a dictionary"
            )
    if not isinstance(item, Mapping):
        return item, None
    if input_name not in item:
        names = ", ".join(repr(str(name)) for name in item) or "nothing"
        raise DataError(f"{where} has {names}: expected the model's input {input_name!r}")
    return item[input_name], next((item[name] for name in _LABEL_NAMES if name in item), None)


def _images(value: Any, input_name: str, shape: tuple[int | None, ...] | None, where: str) -> FloatArray:
    array = to_numpy(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise DataError(
            f"{where}: {input_name!r} is {array.dtype.name}, expected float32: normalise in the data loader"
        )
    if array.ndim < 2 or not len(array):
        raise DataError(
            f"{where}: {input_name!r} has shape {list(array.shape)}, expected [batch, channels, height, width]"
        )
    if shape is not None:
        wanted = (None, *shape)
        fits = len(wanted) == array.ndim and all(w in (None, -1, s) for w, s in zip(wanted, array.shape, strict=True))
        if not fits:
            shown = ["any" if size in (None, -1) else size for size in wanted]
            raise DataError(f"{where}: {input_name!r} has shape {list(array.shape)}, expected {shown}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _labels(value: Any, count: int, where: str) -> LabelArray:
    if value is None:
        return np.full(count, UNLABELLED, np.int64)
    array = to_numpy(value)
    if array.dtype.kind not in "iu" or array.size != count:
        raise DataError(
            f"{where}: labels are {array.dtype.name} of shape {list(array.shape)}, expected {count} whole numbers"
        )
    return array.reshape(count).astype(np.int64)
