"""Batches on their way from NumPy to the device, one ahead of the step that is running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

_Item = TypeVar("_Item")
_Started = TypeVar("_Started")
_Batch = npt.NDArray[Any]


def to_device(batches: Iterable[Any], device: torch.device | str) -> Iterator[Any]:
    """Yield the batches as tensors on `device`, in order.

    batches: NumPy arrays, or tuples whose first element is one; the other elements are passed through as they are.
    On the CPU a tensor shares the array's memory. On CUDA the array is copied into pinned memory and from there by a
    stream of its own, while the caller computes on the batch before; the caller's current stream waits for the copy.
    """
    target = torch.device(device)
    if target.type == "cuda":
        upload = _Upload(target)
        return one_ahead(batches, upload.start, upload.finish)
    return (_with_first(item, _tensor(_first(item)).to(target)) for item in batches)


def one_ahead(
    items: Iterable[_Item], start: Callable[[_Item], _Started], finish: Callable[[_Started], Any]
) -> Iterator[Any]:
    """finish(start(item)) of each item in order; `start` of an item is called before `finish` of the one before it."""
    iterator = iter(items)
    try:
        ahead = start(next(iterator))
    except StopIteration:
        return
    for item in iterator:
        following = start(item)
        yield finish(ahead)
        ahead = following
    yield finish(ahead)


class _Upload:
    """Copies to one CUDA device by a stream of its own, through two pinned buffers that take turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [_PinnedBuffer(), _PinnedBuffer()]

    def start(self, item: Any) -> tuple[Any, torch.Tensor, torch.cuda.Event]:
        """Queue the copy; it waits for nothing but the buffer's last one, two batches ago."""
        self._buffers.reverse()
        pinned = self._buffers[0].fill(_tensor(_first(item)))
        with torch.cuda.stream(self._stream):
            tensor = pinned.to(self._device, non_blocking=True)
        copied = self._buffers[0].copied = self._stream.record_event()
        return item, tensor, copied

    def finish(self, started: tuple[Any, torch.Tensor, torch.cuda.Event]) -> Any:
        """The item with its tensor, for use on the caller's current stream."""
        item, tensor, copied = started
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        tensor.record_stream(current)  # its memory, of the copying stream, is not reused before this stream is done
        return _with_first(item, tensor)


class _PinnedBuffer:
    """Page-locked memory for one batch, and the event after which it may be written again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.copied: torch.cuda.Event | None = None

    def fill(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch in pinned memory."""
        if self.copied is not None:
            self.copied.synchronize()
        if self._memory.numel() < batch.nbytes:
            self._memory = torch.empty(batch.nbytes, dtype=torch.uint8, pin_memory=True)
        return self._memory[: batch.nbytes].view(batch.dtype).view(batch.shape).copy_(batch)


def _first(item: Any) -> _Batch:
    batch: _Batch = item[0] if isinstance(item, tuple) else item
    return batch


def _with_first(item: Any, tensor: torch.Tensor) -> Any:
    return (tensor, *item[1:]) if isinstance(item, tuple) else tensor


def _tensor(batch: _Batch) -> torch.Tensor:
    """The array as a tensor on the same memory; a copy where torch cannot share it (read-only, negative strides)."""
    shareable = batch.flags.writeable and min(batch.strides, default=0) >= 0
    return torch.from_numpy(batch if shareable else np.array(batch))
