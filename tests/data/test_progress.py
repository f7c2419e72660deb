from __future__ import annotations

import io

import pytest
from rich.console import Console

from fullquant.data import progress
from fullquant.data.progress import ProgressBar


class Clock:
    """A time.monotonic that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120), text


def test_short_work_is_silent(clock: Clock) -> None:
    for terminal in (True, False):
        console, text = _console(terminal)
        with ProgressBar("read", 10, console=console) as bar:
            for _ in range(10):
                clock.now += 0.1
                bar.advance()
        assert text.getvalue() == ""


def test_log_files_get_a_line_now_and_then(clock: Clock) -> None:
    console, text = _console(False)
    with ProgressBar("read", 6000, console=console) as bar:
        for _ in range(60):
            clock.now += 1
            bar.advance(100, note="loss 0.5")
    lines = text.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "read: 2000/6000, 100.0 images/s, 0:40 left, loss 0.5"


def test_terminals_get_a_bar_that_goes_away(clock: Clock) -> None:
    console, text = _console(True)
    with ProgressBar("train", 100, console=console) as outer:
        clock.now += 3
        outer.advance(10, note="loss 0.25")
        with ProgressBar("evaluate", None, console=console) as inner:
            clock.now += 3
            inner.advance(5)
            assert progress._screen.users == 2
        assert progress._screen.users == 1
        outer.advance(10)
    assert progress._screen.progress is None
    for word in ("train", "loss 0.25", "3.3 images/s", "evaluate"):
        assert word in text.getvalue()


def test_disabled_is_silent(clock: Clock) -> None:
    console, text = _console(False)
    with ProgressBar("read", 10, console=console, enabled=False) as bar:
        clock.now += 1000
        bar.advance(5)
    assert text.getvalue() == ""
    assert bar.line() == "read: 5/10, 0.0 images/s, 16:40 left"


def test_an_error_leaves_no_bar(clock: Clock) -> None:
    console, _ = _console(True)

    def fail() -> None:
        with ProgressBar("train", 100, console=console) as bar:
            clock.now += 3
            bar.advance(10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert progress._screen.progress is None


def test_hours_are_shown() -> None:
    assert progress._duration(3723) == "1:02:03"
