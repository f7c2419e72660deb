"""The float model's outputs of all validation images, kept for many comparisons: in memory, beyond a limit on disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import IO, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# 50,000 images of ImageNet take 200 MB; with the 22,000 classes of ImageNet-22k they take 4.4 GB.
_IN_MEMORY = 1 << 29


class Outputs(Sequence[Array]):
    """A list of float32 arrays that only grows. The file has no name and is gone with the object."""

    def __init__(self, limit: int = _IN_MEMORY) -> None:
        self.limit = limit
        self._kept: list[Array] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._places: list[tuple[int, tuple[int, ...]]] = []

    def append(self, outputs: Array) -> None:
        """One more batch; the array is the list's own from now on."""
        array = np.ascontiguousarray(outputs, np.float32)
        if self._bytes + array.nbytes <= self.limit and not self._places:
            self._kept.append(array)
            self._bytes += array.nbytes
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fullquant-")  # noqa: SIM115
        self._places.append((self._file.seek(0, 2), array.shape))
        self._file.write(array.tobytes())

    def __len__(self) -> int:
        return len(self._kept) + len(self._places)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        index %= len(self)
        if index < len(self._kept):
            return self._kept[index]
        assert self._file is not None
        offset, shape = self._places[index - len(self._kept)]
        self._file.seek(offset)
        return np.frombuffer(self._file.read(4 * math.prod(shape)), np.float32).reshape(shape)
