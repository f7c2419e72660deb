"""Batches of preprocessed images, read by worker processes into shared memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from fullquant.data.augment import Augment
from fullquant.data.images import FloatArray, Preprocess
from fullquant.data.lists import ImageList
from fullquant.data.pool import ProcessPool
from fullquant.data.sampling import IndexArray, Sampling
from fullquant.data.shared_batches import LENT, SharedBatches, shared_file, slot_bytes
from fullquant.errors import ConfigError, DataError

LabelArray = npt.NDArray[np.int64]
OnBadImage = Literal["error", "skip"]

_log = logging.getLogger(__name__)
_LARGEST_JOB = 16  # images: small enough to share a batch among the workers, large enough to hide the hand-over
_NAMES_WARNED = 5


@dataclass(frozen=True)
class _Job:
    """Images for some rows of one slot; `ticket` names the batch of the iteration."""

    ticket: int
    slot: int
    row: int
    epoch: int
    indices: tuple[int, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Reader:
    """Reads images into rows of a batch; the same code in a worker and in process."""

    preprocess: Preprocess
    augment: Augment | None
    skip: bool

    def read(self, job: _Job, rows: FloatArray) -> dict[int, str]:
        """Fill `rows`; returns {row in the batch: message} of the images that could not be read."""
        bad: dict[int, str] = {}
        for offset, (index, path) in enumerate(zip(job.indices, job.paths, strict=True)):
            random = None if self.augment is None else self.augment.generator(job.epoch, index)
            try:
                self.preprocess.load(path, augment=self.augment, random=random, out=rows[offset])
            except DataError as error:
                if not self.skip:
                    raise
                bad[job.row + offset] = str(error)
        return bad


@dataclass
class _Pending:
    """A batch being read."""

    slot: int
    indices: IndexArray
    jobs_left: int
    bad: dict[int, str] = field(default_factory=dict)


def attach_reader(
    reader: _Reader, file_descriptor: int, slots: int, shape: tuple[int, ...]
) -> Callable[[_Job], dict[int, str]]:
    """Entry point of a worker: the function that does its jobs, on the shared batches of the given shape."""
    batches = SharedBatches(file_descriptor, slots, shape)

    def work(job: _Job) -> dict[int, str]:
        return reader.read(job, batches.rows(job.slot, job.row, job.row + len(job.paths)))

    return work


class ImageLoader:
    """Iterate over (images float32 [B, C, H, W], labels int64 [B]); `len` is the number of batches of an epoch.

    Batches come in a fixed order with fixed contents: the number of workers changes nothing. The arrays are the
    caller's own.

    images: what to read. preprocess: how. augment: random crops and flips, or None.
    shuffle, seed, drop_last, rank, world: see `Sampling`; the order changes with `set_epoch`.
    workers: processes that read (0: this one); they live until `close`, over all epochs. On Windows, always 0.
    prefetch: batches read ahead of the one in use. Shared memory holds them and the two that a loop refers to; a
        caller that keeps more gets copies.
    on_bad_image: "error" raises DataError naming the file; "skip" counts each file once in `skipped`, warns with the
        first names, and leaves the image out. With drop_last another image of the batch takes its place, so batches
        keep their size.
    """

    def __init__(
        self,
        images: ImageList,
        preprocess: Preprocess,
        batch_size: int,
        *,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        on_bad_image: OnBadImage = "error",
    ) -> None:
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"on_bad_image {on_bad_image!r} is neither 'error' nor 'skip'")
        if workers < 0 or prefetch < 1:
            raise ConfigError(f"workers {workers} must be 0 or more, prefetch {prefetch} 1 or more")
        if augment is not None and augment.random_crop and preprocess.keep_ratio_pad:
            raise ConfigError("random_crop changes the ratio that keep_ratio_pad keeps: switch one of them off")
        self.images = images
        self.preprocess = preprocess
        self.sampling = Sampling(len(images), batch_size, shuffle, drop_last, seed, rank, world)
        self.workers = 0 if sys.platform == "win32" else workers  # no inherited file descriptors there
        self._reader = _Reader(preprocess, augment, on_bad_image == "skip")
        self._prefetch = prefetch
        self._epoch, self._start = 0, 0
        self._bad_paths: set[str] = set()
        self._iteration = 0
        self._tickets = 0
        self._pool: ProcessPool | None = None
        self._slots: SharedBatches | None = None

    @property
    def batch_size(self) -> int:
        """Images in a full batch of this rank."""
        return self.sampling.batch_size

    @property
    def image_count(self) -> int:
        """Images of this rank in one epoch (unreadable ones included)."""
        return self.sampling.own_count

    @property
    def skipped(self) -> int:
        """How many image files were unreadable, however often each was tried."""
        return len(self._bad_paths)

    def count_skipped(self, paths: Iterable[str]) -> None:
        """Files that other processes could not read, each counted once in `skipped`."""
        self._bad_paths.update(paths)

    @property
    def skipped_paths(self) -> frozenset[str]:
        """The files that were unreadable."""
        return frozenset(self._bad_paths)

    def over(self, images: ImageList, batch_size: int | None = None) -> ImageLoader:
        """A loader of other images, read in order and without augmentation; what it skips is counted here too.

        batch_size: None takes that of this loader.
        """
        other = ImageLoader(
            images,
            self.preprocess,
            batch_size or self.batch_size,
            workers=self.workers,
            on_bad_image="skip" if self._reader.skip else "error",
        )
        other._bad_paths = self._bad_paths
        return other

    def __len__(self) -> int:
        return len(self.sampling)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next iteration (order and augmentation); its first `start_batch` batches are skipped.

        The offset holds for one iteration: it is how an interrupted epoch goes on.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ConfigError(f"epoch {epoch}, batch {start_batch} is not inside an epoch of {len(self)} batches")
        self._epoch, self._start = epoch, start_batch

    def __iter__(self) -> Iterator[tuple[FloatArray, LabelArray]]:
        start, self._start = self._start, 0
        self._iteration += 1
        batches = self.sampling.batches(self._epoch, start)
        return self._in_workers(batches, self._epoch) if self.workers else self._in_process(batches, self._epoch)

    def close(self) -> None:
        """End the workers and free the shared memory; the next iteration starts them anew."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._slots = None

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_process(self, batches: Iterator[IndexArray], epoch: int) -> Iterator[tuple[FloatArray, LabelArray]]:
        for indices in batches:
            rows = np.empty((len(indices), *self.preprocess.shape), np.float32)
            job = self._job(0, 0, 0, epoch, indices)
            finished = self._finish(rows, indices, self._reader.read(job, rows))
            if finished is not None:
                yield finished

    def _in_workers(self, batches: Iterator[IndexArray], epoch: int) -> Iterator[tuple[FloatArray, LabelArray]]:
        iteration = self._iteration
        pool, slots = self._ready()
        pending: dict[int, _Pending] = {}  # by ticket, in order
        while True:
            free = slots.free({batch.slot for batch in pending.values()})
            for slot, indices in zip(free, batches):  # noqa: B905 - the slots end first, but for the last batches
                self._submit(pool, pending, slot, indices, epoch)
            if not pending:
                return
            ticket = next(iter(pending))
            self._await(pool, pending, ticket)
            batch = pending.pop(ticket)
            finished = self._finish(slots.take(batch.slot, len(batch.indices)), batch.indices, batch.bad)
            if finished is not None:
                yield finished
            if iteration != self._iteration:
                raise DataError("this iteration over the images ended when a newer one over the same loader began")

    def _ready(self) -> tuple[ProcessPool, SharedBatches]:
        """The pool and its shared batches, with no job left of an earlier iteration."""
        if self._pool is not None:
            self._pool.cancel_waiting()
            while self._pool is not None and self._pool.unanswered:
                if self._pool.answer().error is not None:
                    self.close()  # perhaps a dead worker: start with new ones
        if self._pool is None or self._slots is None:
            count, shape = self._prefetch + LENT, (self.batch_size, *self.preprocess.shape)
            file_descriptor = shared_file(count * slot_bytes(shape))
            try:
                self._slots = SharedBatches(file_descriptor, count, shape)
                self._pool = ProcessPool(
                    f"{__name__}:{attach_reader.__name__}",
                    (self._reader, file_descriptor, count, shape),
                    self.workers,
                    file_descriptors=(file_descriptor,),
                )
            finally:
                os.close(file_descriptor)  # the mappings keep the memory alive
        return self._pool, self._slots

    def _submit(
        self, pool: ProcessPool, pending: dict[int, _Pending], slot: int, indices: IndexArray, epoch: int
    ) -> None:
        size = min(_LARGEST_JOB, -(-len(indices) // self.workers))
        rows = range(0, len(indices), size)
        self._tickets += 1
        pending[self._tickets] = _Pending(slot, indices, len(rows))
        for row in rows:
            pool.submit(self._job(self._tickets, slot, row, epoch, indices[row : row + size]))

    def _job(self, ticket: int, slot: int, row: int, epoch: int, indices: IndexArray) -> _Job:
        numbers = tuple(int(index) for index in indices)
        return _Job(ticket, slot, row, epoch, numbers, tuple(self.images.path(index) for index in numbers))

    def _await(self, pool: ProcessPool, pending: dict[int, _Pending], ticket: int) -> None:
        """Take answers until the batch is complete. An error ends the workers and is raised."""
        while pending[ticket].jobs_left:
            answer = pool.answer()
            if answer.error is not None:
                self.close()
                raise answer.error
            batch = pending[answer.job.ticket]
            batch.bad.update(answer.result)
            batch.jobs_left -= 1

    def _finish(
        self, rows: FloatArray, indices: IndexArray, bad: dict[int, str]
    ) -> tuple[FloatArray, LabelArray] | None:
        """The batch with its labels; unreadable images left out or replaced. None if nothing is left."""
        labels = self.images.labels[indices].astype(np.int64)
        if not bad:
            return rows, labels
        self._count_bad({self.images.path(int(indices[row])): bad[row] for row in sorted(bad)})
        good = np.array([row for row in range(len(rows)) if row not in bad], np.intp)
        if self.sampling.drop_last:
            if not len(good):
                raise DataError(f"every image of a batch is unreadable, the first: {next(iter(bad.values()))}")
            good = np.resize(good, len(rows))
        return (rows[good], labels[good]) if len(good) else None

    def _count_bad(self, bad: dict[str, str]) -> None:
        """bad: {path: message}. Each file is counted, and named, once."""
        for path, message in bad.items():
            if path in self._bad_paths:
                continue
            self._bad_paths.add(path)
            if self.skipped <= _NAMES_WARNED:
                _log.warning("skipped: %s", message)
            elif self.skipped == _NAMES_WARNED + 1:
                _log.warning("more images are skipped without a line each; their number is in the report")
