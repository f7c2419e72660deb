from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullquant.data.images import Preprocess
from fullquant.data.lists import find_images
from fullquant.data.loader import ImageLoader
from fullquant.data.shared_batches import LENT, SharedBatches, shared_file, slot_bytes

_SHAPE = (4, 3, 5)
_COUNT = 4


@pytest.fixture
def sides() -> Iterator[tuple[SharedBatches, SharedBatches]]:
    """(the caller's side, a worker's side) of the same memory."""
    file_descriptor = shared_file(_COUNT * slot_bytes(_SHAPE))
    yield SharedBatches(file_descriptor, _COUNT, _SHAPE), SharedBatches(file_descriptor, _COUNT, _SHAPE)
    os.close(file_descriptor)


def _fill(worker: SharedBatches, slot: int, value: float) -> None:
    worker.rows(slot, 0, _SHAPE[0])[...] = value


def test_what_a_worker_writes_is_what_the_caller_takes(sides: tuple[SharedBatches, SharedBatches]) -> None:
    batches, worker = sides
    for slot in range(_COUNT):
        _fill(worker, slot, slot)
    worker.rows(1, 2, 3)[...] = 9
    batch = batches.take(1, 3)
    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((3, 3, 5), np.float32, True)
    assert batch[:, 0, 0].tolist() == [1, 1, 9]
    batch[...] = -1
    assert worker.rows(2, 0, 4).min() == worker.rows(2, 0, 4).max() == 2
    assert worker.rows(0, 0, 4).min() == worker.rows(0, 0, 4).max() == 0


def test_a_taken_slot_is_free_when_nothing_refers_to_it(sides: tuple[SharedBatches, SharedBatches]) -> None:
    batches, _ = sides
    batch = batches.take(2, 4)
    part = batch[1:2, :, ::2].T
    assert batches.free({0}) == [1, 3]
    del batch
    gc.collect()
    assert batches.free({0}) == [1, 3]  # the part is enough
    del part
    gc.collect()
    assert batches.free({0}) == [1, 2, 3]


def test_who_keeps_more_gets_copies(sides: tuple[SharedBatches, SharedBatches]) -> None:
    batches, worker = sides
    kept: list[np.ndarray[Any, Any]] = []
    for value in range(6):
        slot = batches.free(())[0]
        _fill(worker, slot, value)
        kept.append(batches.take(slot, 4))
    assert [float(batch.min()) for batch in kept] == [float(batch.max()) for batch in kept] == list(range(6))
    assert len(batches.free(())) == _COUNT - LENT
    assert [batch.base is None for batch in kept] == [False] * LENT + [True] * (6 - LENT)


@pytest.mark.skipif(sys.platform == "win32", reason="no workers there")
@pytest.mark.parametrize("prefetch", [1, 2])
def test_a_loop_gets_no_copies_and_its_batches_do_not_change(image_set: Path, prefetch: int) -> None:
    images, preprocess = find_images(image_set, "train"), Preprocess(24, 32)
    expected = [batch for batch, _ in ImageLoader(images, preprocess, 4)]
    with ImageLoader(images, preprocess, 4, workers=2, prefetch=prefetch) as loader:
        for _epoch in range(2):
            part = None
            for number, (batch, _) in enumerate(loader):
                assert batch.base is not None
                np.testing.assert_array_equal(batch, expected[number])
                if part is not None:
                    np.testing.assert_array_equal(part, expected[number - 1][1:3])
                part = batch[:][1:3] if number % 2 == 0 else None


@pytest.mark.skipif(sys.platform == "win32", reason="no workers there")
def test_batches_outlive_the_loader(image_set: Path) -> None:
    images, preprocess = find_images(image_set, "train"), Preprocess(24, 32)
    with ImageLoader(images, preprocess, 4, workers=1) as loader:
        batch, _ = next(iter(loader))
    np.testing.assert_array_equal(batch, next(iter(ImageLoader(images, preprocess, 4)))[0])
