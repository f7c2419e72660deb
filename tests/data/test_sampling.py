from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.data.augment import Augment
from fullquant.data.sampling import Sampling
from fullquant.errors import ConfigError

_counts, _sizes, _worlds = st.integers(1, 300), st.integers(1, 17), st.integers(1, 5)


@given(_counts, _sizes, _worlds, st.booleans(), st.integers(0, 3))
def test_ranks_partition_the_set(count: int, size: int, world: int, shuffle: bool, epoch: int) -> None:
    parts = [Sampling(count, size, shuffle, rank=rank, world=world) for rank in range(world)]
    seen = [index for part in parts for batch in part.batches(epoch) for index in batch.tolist()]
    assert sorted(seen) == list(range(count))
    for part in parts:
        batches = list(part.batches(epoch))
        assert len(batches) == len(part)
        assert sum(map(len, batches)) == part.own_count
        assert all(len(batch) == size for batch in batches[:-1])


@given(_counts, _sizes, _worlds)
def test_with_drop_last_ranks_have_equal_full_batches(count: int, size: int, world: int) -> None:
    if count < size * world:
        with pytest.raises(ConfigError, match="do not fill one batch"):
            Sampling(count, size, drop_last=True, world=world)
        return
    parts = [Sampling(count, size, True, drop_last=True, rank=rank, world=world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    seen = [index for part in parts for batch in part.batches(0) for index in batch.tolist()]
    assert len(seen) == len(set(seen)) == size * world * len(parts[0])
    assert parts[0].own_count == size * len(parts[0])


@given(st.integers(1, 6), st.integers(0, 5))
def test_a_step_covers_the_same_images_for_any_world(world: int, epoch: int) -> None:
    """12 images a step, on 1 to 6 processes: an interrupted run may go on with other processes."""
    if 12 % world:
        return
    parts = [Sampling(120, 12 // world, True, drop_last=True, rank=rank, world=world) for rank in range(world)]
    alone = list(Sampling(120, 12, True, drop_last=True).batches(epoch))
    steps = zip(*(part.batches(epoch) for part in parts), strict=True)
    for step, expected in zip(steps, alone, strict=True):
        assert sorted(np.concatenate(step).tolist()) == sorted(expected.tolist())


@given(_counts, _sizes, st.data())
def test_start_is_the_tail(count: int, size: int, data: st.DataObject) -> None:
    sampling = Sampling(count, size, shuffle=True, seed=5)
    start = data.draw(st.integers(0, len(sampling)))
    full, tail = list(sampling.batches(2)), list(sampling.batches(2, start))
    assert [batch.tolist() for batch in tail] == [batch.tolist() for batch in full[start:]]


def test_order_depends_on_seed_and_epoch() -> None:
    base = Sampling(100, 10, shuffle=True, seed=1)
    assert base.order(0).tolist() == base.order(0).tolist()
    assert base.order(0).tolist() != base.order(1).tolist()
    assert base.order(0).tolist() != Sampling(100, 10, shuffle=True, seed=2).order(0).tolist()
    assert Sampling(100, 10).order(7).tolist() == list(range(100))


@pytest.mark.parametrize("arguments", [(10, 0), (10, 2, False, False, 0, 2, 2), (10, 2, False, False, 0, -1, 2)])
def test_impossible_settings_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        Sampling(*arguments)  # type: ignore[arg-type]


def test_versions_of_an_image_come_again() -> None:
    def draws(versions: int | None) -> list[float]:
        augment = Augment(versions=versions)
        return [float(augment.generator(epoch, 7).random()) for epoch in range(6)]

    assert len(set(draws(None))) == 6
    assert draws(2) == draws(None)[:2] * 3
    with pytest.raises(ConfigError, match="versions"):
        Augment(versions=0)
