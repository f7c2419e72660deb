"""Two real processes: what they tell each other, and how one ends when the other does."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fullquant.distributed import ALONE, World, joined
from fullquant.errors import ConfigError
from tests.distributed.launching import Ended, run

Endings = Callable[[str], list[Ended]]
PROGRAMS = ("-m", "tests.distributed.programs")


def test_one_process_hears_itself() -> None:
    assert ALONE.sum([1, 2]).tolist() == [1, 2]
    assert ALONE.gather("a") == ["a"]
    assert ALONE.broadcast("a") == ALONE.on_first(lambda: "a") == ALONE.first_on_node(lambda: "a") == "a"
    assert ALONE.in_order(ALONE.own("abc")) == ["a", "b", "c"]
    assert ALONE.mean(0.5) == 0.5
    assert not ALONE.every(False)
    with joined("cuda:7") as (world, device):  # nothing is looked at
        assert (world, device) == (ALONE, "cuda:7")


@pytest.mark.parametrize("numbers", [(2, 2, 0, 1), (0, 2, 0, 3), (0, 0, 0, 0), (1, 2, 2, 2)])
def test_an_impossible_world(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="process"):
        World(*numbers)


def test_collectives() -> None:
    """Process 0 then lets the other wait for longer than a dead one would be waited for: no alarm."""
    both = run([*PROGRAMS, "collectives"])
    assert [ended.status for ended in both] == [0, 0], both[0].stderr + both[1].stderr
    found = [json.loads(ended.stdout) for ended in both]
    assert [one.pop("node") for one in found] == [0, 1]
    assert found[0] == found[1]
    assert found[0] == {
        "device": "cpu", "sum": [1, 3, 5], "min": 0.5, "max": [1, 0], "mean": 0.5, "gather": ["0", "1"],
        "broadcast": {"from": 0}, "every": [True, False], "in_order": ["a", "b", "c"], "first": True,
        "refused": "found out by process 0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def endings() -> Iterator[Callable[[str], list[Ended]]]:
    """How two processes end that fail in one of the ways; some at a time, for most of the time they wait."""
    ways = ("busy", "killed_first", "one", "alike")
    with ThreadPoolExecutor(3) as pool:
        found = {how: pool.submit(run, [*PROGRAMS, "failing", how]) for how in ways}
        yield lambda how: found[how].result()


def _said(both: list[Ended]) -> tuple[list[int], list[list[str]]]:
    """Statuses, and the error lines of each process."""
    return [ended.status for ended in both], [_errors(ended.stderr) for ended in both]


def _errors(text: str) -> list[str]:
    return [line.split("error: ", 1)[1] for line in text.splitlines() if "error: " in line]


def test_the_same_mistake_everywhere_is_said_once(endings: Endings) -> None:
    assert _said(endings("alike")) == ([1, 1], [["a wrong key"], []])


def test_the_mistake_of_one_process_names_it(endings: Endings) -> None:
    assert _said(endings("one")) == ([1, 1], [["process 1 ended: a wrong file"], ["process 1: a wrong file"]])


def test_a_killed_process_ends_a_busy_one(endings: Endings) -> None:
    statuses, errors = _said(endings("busy"))
    assert statuses == [1, -signal.SIGKILL]
    assert errors[1] == []
    assert len(errors[0]) == 1
    assert errors[0][0].startswith("process 1 ended: no sign of life for")


def test_a_killed_process_0_ends_one_that_waits_for_it(endings: Endings) -> None:
    statuses, errors = _said(endings("killed_first"))
    assert statuses == [-signal.SIGKILL, 1]
    assert len(errors[1]) == 1
    assert errors[1][0].startswith("process 0 ended")


@pytest.mark.parametrize("text", ["0", "-1", "soon", "61"])
def test_a_wrong_heartbeat_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullquant.distributed.group import _interval

    monkeypatch.setenv("FULLQUANT_HEARTBEAT", text)
    with pytest.raises(ConfigError, match="FULLQUANT_HEARTBEAT"):
        _interval()
