"""Observers of several processes, merged, hold what one observer holds that has seen everything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fullquant.calibration.observers import (
    EveryObserver,
    Histogram,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    PercentileObserver,
)
from fullquant.distributed import World
from fullquant.numerics.qparams import QuantSpec

INT8, UINT8 = QuantSpec(-128, 127), QuantSpec(0, 255, symmetric=False)
FLOATS = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 6.0]))
BATCHES = st.lists(hnp.arrays(np.float32, st.integers(1, 30), elements=FLOATS), min_size=1, max_size=7)


class Thread(World):
    """A process of a world whose processes are threads: whatever is gathered lies in one list."""

    shared: Any
    barrier_of_threads: Any

    def gather(self, item: Any) -> list[Any]:
        self.shared[self.rank] = item
        self.barrier_of_threads.wait()
        found = list(self.shared)
        self.barrier_of_threads.wait()
        return found

    def _reduced(self, values: Any, how: str) -> np.ndarray:
        reduce: Callable[..., np.ndarray] = getattr(np, how)
        return reduce(np.array(self.gather(np.asarray(values))), axis=0)


def merged(make: Callable[[], Any], batches: list[np.ndarray], size: int) -> list[Any]:
    """One observer of each process, merged."""
    observers, shared, barrier = [make() for _ in range(size)], [None] * size, threading.Barrier(size)

    def work(rank: int) -> None:
        world = Thread(rank, size, rank, size)
        object.__setattr__(world, "shared", shared)
        object.__setattr__(world, "barrier_of_threads", barrier)
        for batch in world.own(batches):
            observers[rank].update(batch)
        observers[rank].merge(world)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return observers


@pytest.mark.parametrize("make", [MinMaxObserver, MovingAverageObserver, PercentileObserver, MseObserver])
@given(BATCHES, st.integers(2, 3))
@settings(deadline=None, max_examples=25)
def test_merged_observers_say_what_one_says(make: Callable[[], Observer], batches: list[np.ndarray], size: int) -> None:
    one = make()
    for batch in batches:
        one.update(batch)
    for observer in merged(make, batches, size):
        for spec in (INT8, UINT8):
            assert observer.qparams(spec).scale == one.qparams(spec).scale
            assert observer.qparams(spec).zero_point == one.qparams(spec).zero_point


@given(BATCHES, st.integers(2, 4))
@example([np.full(3, 1, np.float32), np.full(3, 1.5, np.float32)], 2)  # a value at the end of the smaller reach
@example([np.array([0.7, -(2**-22)], np.float32), np.array([90], np.float32)], 2)  # 128 - 2**-22 is 128 in float32
@settings(deadline=None, max_examples=50)
def test_merged_counts_are_those_of_one_histogram(batches: list[np.ndarray], size: int) -> None:
    one, turned = Histogram(64), Histogram(64)
    for batch in batches:
        one.update(batch)
    for batch in reversed(batches):
        turned.update(batch)
    for histogram in (turned, *merged(lambda: Histogram(64), batches, size)):
        assert histogram.reach == one.reach
        np.testing.assert_array_equal(histogram.counts, one.counts)
        assert (histogram.low, histogram.high) == (one.low, one.high)


def test_every_value_lies_in_its_bin() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    histogram = Histogram()
    histogram.update(values)
    edges = np.linspace(-histogram.reach, histogram.reach, len(histogram.counts) + 1)
    np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(np.float64), edges)[0])
    assert np.log2(histogram.reach) % 1 == 0


@pytest.mark.parametrize("size", [1, 1 << 18, (1 << 18) + 1, 1_000_000, 8_000_000])
def test_of_a_large_batch_a_share_is_counted_and_no_channel_is_left_out(size: int) -> None:
    values = np.tile(np.arange(16, dtype=np.float32) / 16, -(-size // 16))[:size]
    histogram = Histogram()
    histogram.update(values)
    counted = int(histogram.counts.sum())
    assert counted == size if size <= 1 << 18 else 1 << 14 < counted <= (1 << 16) + 1
    if size > 16:
        channels = histogram.counts[histogram.counts > 0]
        assert len(channels) == 16
        assert channels.max() - channels.min() <= 1 + size // 100_000
    assert histogram.high == float(values.max())


def test_every_observer_merges_both_of_its_parts() -> None:
    batches = [np.random.default_rng(k).normal(0, k + 1, 50).astype(np.float32) for k in range(5)]
    one = EveryObserver()
    for batch in batches:
        one.update(batch)
    for observer in merged(EveryObserver, batches, 2):
        assert observer.average.ranges == one.average.ranges
        np.testing.assert_array_equal(observer.histogram.counts, one.histogram.counts)
