"""The watch: who is given up, when, and what is said. One process, and time that goes by in looks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fullquant.distributed.watch import Watch
from fullquant.distributed.world import World


class Store:
    """The part of PyTorch's store that a watch uses."""

    def __init__(self, size: int) -> None:
        self.values = {"verdict": b"", **{f"beat/{rank}": b"0" for rank in range(size)}}
        self.gone = False

    def _here(self) -> None:
        if self.gone:
            raise RuntimeError("Broken pipe\nstack trace")

    def set(self, key: str, value: str | bytes) -> None:
        self._here()
        self.values[key] = value.encode() if isinstance(value, str) else value

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._here()
        return [self.values[key] for key in keys]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        if self.values[key] == expected.encode():
            self.set(key, desired)
        return self.values[key]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the watch, as the one element of a list."""
    now = [0.0]
    monkeypatch.setattr("fullquant.distributed.watch.time.monotonic", lambda: now[0])
    return now


def looks(watch: Watch, clock: list[float], count: int, alive: tuple[int, ...] = ()) -> list[str | None]:
    """What the watch finds in so many looks, while the processes `alive` count on."""
    found = []
    for k in range(count):
        for rank in alive:
            watch.store.values[f"beat/{rank}"] = str(1000 + clock[0] + k).encode()
        found.append(watch._look())
        clock[0] += watch.interval
    return found


def watch_of(rank: int = 0, size: int = 3) -> Watch:
    return Watch(Store(size), World(rank, size, rank, size), 5.0, hosts_store=rank == 0)


def test_processes_that_count_on_are_alive(clock: list[float]) -> None:
    assert looks(watch_of(), clock, 50, alive=(1, 2)) == [None] * 50


def test_a_silent_process_is_given_up_within_a_minute(clock: list[float]) -> None:
    watch = watch_of()
    looks(watch, clock, 3, alive=(1, 2))
    found = looks(watch, clock, 10, alive=(2,))
    assert next(k for k, sentence in enumerate(found) if sentence) * watch.interval <= 45
    assert found[-1] is not None
    assert found[-1].startswith("process 1 ended: no sign of life for 30 s")


def test_a_process_that_was_stopped_itself_does_not_give_up_the_others(clock: list[float]) -> None:
    watch = watch_of()
    looks(watch, clock, 3, alive=(1, 2))
    clock[0] += 3600  # a suspended machine
    assert looks(watch, clock, 2) == [None, None]


def test_a_reason_is_passed_on_after_two_looks(clock: list[float]) -> None:
    watch = watch_of()
    watch.store.values["beat/2"] = b"!no space"
    found = looks(watch, clock, 4, alive=(1,))
    assert found[:2] == [None, None]
    assert found[3] == "process 2 ended: no space"


def test_the_first_verdict_is_everyones(clock: list[float]) -> None:
    watch = watch_of(1)
    watch.store.values["verdict"] = b"process 2 ended: no space"
    assert looks(watch, clock, 1) == ["process 2 ended: no space"]


def test_one_that_has_left_is_not_accused(clock: list[float]) -> None:
    watch = watch_of()
    watch.store.values["beat/1"] = b"."
    assert looks(watch, clock, 50, alive=(2,)) == [None] * 50


def test_a_lost_store_tells_the_reason_that_was_heard(clock: list[float]) -> None:
    watch = watch_of(1)
    assert watch._store_is_gone(RuntimeError("Broken pipe\nstack")).endswith("lost (Broken pipe)")
    watch.store.values["beat/0"] = b"!no space"
    looks(watch, clock, 1)
    assert watch._store_is_gone(RuntimeError("Broken pipe")) == "process 0 ended: no space"


@pytest.mark.parametrize(
    ("rank", "others", "alike"),
    [
        (0, {1: b"!bad key", 2: b"!bad key"}, True), (0, {1: b"!bad key", 2: b"7"}, False),
        (0, {1: b"!bad key", 2: b"!other"}, False), (2, {0: b"!bad key", 1: b"7"}, True), (2, {0: b"7"}, False),
        (2, {0: b"!other"}, False),
    ],
)  # fmt: skip
def test_whether_others_fail_for_the_same_reason(rank: int, others: dict[int, bytes], alike: bool) -> None:
    watch = watch_of(rank)
    watch.interval = 0.02
    watch.fail("bad key")
    watch.store.values.update({f"beat/{k}": value for k, value in others.items()})
    assert watch.fails_alike("bad key") is alike
    watch._tell()
    assert watch.store.values[f"beat/{rank}"] == b"!bad key"  # the thread does not write over it


@pytest.mark.parametrize(
    ("rank", "found", "speaks"),
    [
        (0, "process 2 ended: x", True),
        (1, "process 2 ended: x", False),
        (1, "process 0 ended: x", True),
        (2, "process 0 ended: x", False),
    ],
)
def test_one_of_those_that_are_left_speaks(rank: int, found: str, speaks: bool, clock: list[float]) -> None:
    watch = watch_of(rank)
    looks(watch, clock, 1)
    watch.found = found
    assert watch.speaks() is speaks


def test_the_thread_ends_the_process_or_hands_over(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ended: list[int] = []
    monkeypatch.setattr("fullquant.distributed.watch.os._exit", ended.append)
    watch = watch_of(1)
    watch.interval = 0.01
    watch.store.values["verdict"] = b"process 0 ended: no space"
    watch.start()
    watch._thread.join(timeout=10)
    assert ended == [1]
    assert capsys.readouterr().err == "error: process 0 ended: no space\n"

    waiting = watch_of(1)
    waiting.interval = 0.05
    waiting.start()
    threading.Timer(0.1, lambda: waiting.store.set("verdict", "process 2 ended: no space")).start()
    assert waiting.blame() == "process 2 ended: no space"
    assert ended == [1]


def test_a_watch_that_is_stopped_says_nothing_of_a_store_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("fullquant.distributed.watch.os._exit", ended.append)
    watch = watch_of(1)
    watch.interval = 0.05
    watch.start()
    watch.stop()
    watch.store.gone = True
    watch._run()
    assert ended == []
