"""Progress of anything that takes more than two seconds: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_SHOW_AFTER = 2.0  # seconds
_LINE_EVERY = 20.0  # seconds between the lines of a log file


class _Screen:
    """The one rich display of the process: nested bars are lines of it (rich allows one at a time)."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.users = 0

    def enter(self, console: Console) -> Progress:
        if self.progress is None:
            self.progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self.progress.start()
        self.users += 1
        return self.progress

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0 and self.progress is not None:
            self.progress.stop()
            self.progress = None


_screen = _Screen()


class ProgressBar:
    """`with ProgressBar("evaluate", total=2000, unit="images") as bar: bar.advance(32, note="top-1 0.954")`.

    description: what is being done. total: units of the whole, or None if unknown. unit: for the rate ("images/s").
    enabled: False prints nothing. Output goes to stderr, so that a command's last line stays its result.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        unit: str = "images",
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self._description, self._total, self._unit, self._enabled = description, total, unit, enabled
        self._console = console or Console(stderr=True)
        self._done, self._note = 0, ""
        self._began = self._printed = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self._began = self._printed = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None and _screen.progress is not None:
            _screen.progress.remove_task(self._task)
            _screen.leave()
            self._task = None

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self._done / max(time.monotonic() - self._began, 1e-9)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """`count` more units are done; `note` replaces the text at the end."""
        self._done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        if not self._enabled or now - self._began < _SHOW_AFTER:
            return
        if self._console.is_terminal:
            self._draw()
        elif now - self._printed >= _LINE_EVERY:
            self._printed = now
            self._console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def line(self) -> str:
        """The state as one line of text."""
        parts = [f"{self._description}: {self._done}" + (f"/{self._total}" if self._total is not None else "")]
        parts.append(f"{self.rate:.1f} {self._unit}/s")
        if self._total is not None and self._done:
            parts.append(f"{_duration((self._total - self._done) / self.rate)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)

    def _draw(self) -> None:
        rate = f"{self.rate:.1f} {self._unit}/s"
        if self._task is None:
            progress = _screen.enter(self._console)
            self._task = progress.add_task(
                self._description, total=self._total, completed=self._done, rate=rate, note=self._note
            )
        elif _screen.progress is not None:
            _screen.progress.update(self._task, completed=self._done, rate=rate, note=self._note)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
