"""Batches in shared memory: filled by worker processes, used by the caller without a copy."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LENT = 2  # a loop holds two batches: while it asks for the next one, its variable still names the last
_PAGE = 4096  # each slot begins on a page of its own


class SharedBatches:
    """`count` slots, each for a batch of the given shape, in memory that `file_descriptor` shares with workers.

    A slot that was taken stays with the caller until no array of the caller refers to it; then it is free again.
    """

    def __init__(self, file_descriptor: int, count: int, shape: tuple[int, ...]) -> None:
        self._count, self._shape = count, shape
        self._bytes = slot_bytes(shape)
        self._memory = mmap.mmap(file_descriptor, count * self._bytes)
        self._lent: dict[int, weakref.ref[npt.NDArray[Any]]] = {}

    def rows(self, slot: int, start: int, stop: int) -> FloatArray:
        """Rows start..stop of a slot, to be filled."""
        return self._root(slot).reshape(self._shape)[start:stop]

    def free(self, busy: Collection[int]) -> list[int]:
        """The slots that are neither in `busy` nor with the caller."""
        self._forget_returned()
        return [slot for slot in range(self._count) if slot not in busy and slot not in self._lent]

    def take(self, slot: int, rows: int) -> FloatArray:
        """The first rows of a slot as the caller's own: the slot itself, or a copy where the caller has LENT others."""
        self._forget_returned()
        root = self._root(slot)
        batch = root.reshape(self._shape)[:rows]
        if len(self._lent) >= LENT:
            return batch.copy()
        self._lent[slot] = weakref.ref(root)  # all views of it, and tensors made from them, keep it alive
        return batch

    def _root(self, slot: int) -> FloatArray:
        """The slot as a new array, of which no other array is a view yet."""
        return np.frombuffer(self._memory, np.float32, math.prod(self._shape), offset=slot * self._bytes)

    def _forget_returned(self) -> None:
        self._lent = {slot: array for slot, array in self._lent.items() if array() is not None}


def slot_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a slot: float32 of that shape, filled up to whole pages."""
    return -(-math.prod(shape) * 4 // _PAGE) * _PAGE


def shared_file(size: int) -> int:
    """File descriptor of `size` bytes that no name leads to: nothing stays behind, however the processes end.

    Linux: memory (memfd), not limited by /dev/shm, 64 MB in many containers. Elsewhere: an unlinked temporary file.
    """
    if sys.platform == "linux":
        file_descriptor = os.memfd_create("fullquant-batches", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(prefix="fullquant-") as file:
            file_descriptor = os.dup(file.fileno())
    os.ftruncate(file_descriptor, size)
    return file_descriptor
