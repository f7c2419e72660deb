"""The CPU path, and the order and the buffers of the CUDA path with its calls replaced by records of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fullquant.runtime import prefetch
from fullquant.runtime.prefetch import one_ahead, to_device


def _batches(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.full((2, 3), index, np.float32) for index in range(count)]


def test_tensors_share_the_memory_of_the_arrays() -> None:
    arrays = _batches(3)
    tensors = list(to_device(arrays, "cpu"))
    assert [tensor.data_ptr() for tensor in tensors] == [array.ctypes.data for array in arrays]
    assert all(tensor.dtype == torch.float32 and tensor.shape == (2, 3) for tensor in tensors)


def test_the_rest_of_a_tuple_is_passed_through() -> None:
    labels = np.arange(2)
    ((images, other, name),) = to_device([(_batches(1)[0], labels, "a")], torch.device("cpu"))
    assert isinstance(images, torch.Tensor)
    assert other is labels
    assert name == "a"


@pytest.mark.parametrize("kind", ["read-only", "reversed"])
def test_what_torch_cannot_share_is_copied(kind: str) -> None:
    array = np.arange(6, dtype=np.float32)
    if kind == "read-only":
        array.flags.writeable = False
    else:
        array = array[::-1]
    (tensor,) = to_device([array], "cpu")
    np.testing.assert_array_equal(tensor.numpy(), array)
    tensor[0] = 7
    assert array[0] != 7


def test_nothing_is_read_ahead_on_the_cpu() -> None:
    read: list[int] = []

    def source() -> Iterator[np.ndarray[Any, Any]]:
        for index, array in enumerate(_batches(3)):
            read.append(index)
            yield array

    tensors = to_device(source(), "cpu")
    next(tensors)
    assert read == [0]


@pytest.mark.parametrize("count", range(5))
def test_one_ahead_starts_each_item_before_the_one_before_is_used(count: int) -> None:
    calls: list[tuple[str, int]] = []

    def start(item: int) -> int:
        calls.append(("start", item))
        return item

    def finish(item: int) -> int:
        calls.append(("finish", item))
        return 10 * item

    assert list(one_ahead(range(count), start, finish)) == [10 * item for item in range(count)]
    for item in range(count):
        assert calls.index(("start", item)) < calls.index(("finish", item))
        if item + 1 < count:
            assert calls.index(("start", item + 1)) < calls.index(("finish", item))
        if item + 2 < count:
            assert calls.index(("start", item + 2)) > calls.index(("finish", item))
    assert len(calls) == 2 * count


def test_an_error_of_the_source_is_the_callers() -> None:
    def source() -> Iterator[np.ndarray[Any, Any]]:
        yield from _batches(1)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(to_device(source(), "cpu"))
    with pytest.raises(ValueError, match="no more"):
        list(one_ahead(source(), lambda item: item, lambda item: item))


class _Event:
    def __init__(self, number: int) -> None:
        self.number = number
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


class _Stream:
    """Stands for a CUDA stream: gives out events, and notes which it waits for."""

    def __init__(self, *_: object) -> None:
        self.events: list[_Event] = []
        self.waits: list[int] = []
        self.uses: list[torch.Tensor] = []

    def record_event(self) -> _Event:
        self.events.append(_Event(len(self.events)))
        return self.events[-1]

    def wait_event(self, event: _Event) -> None:
        self.waits.append(event.number)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[_Stream, _Stream]:
    """(the copying stream, the caller's), in the place of CUDA's; a copy to the device happens when it is queued."""
    copying, current = _Stream(), _Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: copying)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: stream.uses.append(self))
    moved = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, non_blocking=False: moved(self, "cpu", copy=True))
    made = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: made(*a, **k))
    return copying, current


def test_uploads_take_turns_in_two_buffers_and_are_waited_for(streams: tuple[_Stream, _Stream]) -> None:
    copying, current = streams
    sizes = (4, 4, 6, 2, 4)
    arrays = [(np.full((size, 3), size + index, np.float32), index) for index, size in enumerate(sizes)]
    tensors = list(to_device(arrays, "cuda"))
    for (tensor, index), (array, number) in zip(tensors, arrays, strict=True):
        assert index == number
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert current.waits == [0, 1, 2, 3, 4]
    assert [id(tensor) for tensor in current.uses] == [id(tensor) for tensor, _ in tensors]
    assert (copying.waits, copying.uses) == ([], [])
    # the buffer of batch k is written again for batch k + 2, after the copy of batch k
    assert [event.waited for event in copying.events] == [1, 1, 1, 0, 0]


def test_a_buffer_grows_and_serves_smaller_batches(streams: tuple[_Stream, _Stream]) -> None:
    buffer = prefetch._PinnedBuffer()
    large, small = torch.arange(12.0).view(3, 4), torch.arange(4).view(2, 2)
    first = buffer.fill(large)
    assert torch.equal(first, large)
    second = buffer.fill(small)
    assert torch.equal(second, small)
    assert second.dtype == torch.int64
    assert second.data_ptr() == first.data_ptr()
