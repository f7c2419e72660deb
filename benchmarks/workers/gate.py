"""The worker's end of an alternating measurement: it does a step when told to, and says how long the step took.

Standard library only, Python 3.10 or newer: the interpreters of the peers import it too.

On stdin the coordinator (../alternate.py) writes how many steps to do next, one number a line; on stdout comes one
JSON object a line. Whatever else the worker's libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

Batch = TypeVar("Batch")


class Finished(BaseException):
    """Leaves a training loop that has no other way out. Not an Exception, so that no loop takes it for a failure."""


class Answers:
    """JSON lines to the coordinator, on what was stdout; whatever is printed from now on goes to stderr."""

    def __init__(self) -> None:
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **answer: Any) -> None:
        """One object, one line."""
        self._lines.write(json.dumps(answer) + "\n")


class Clock:
    """Seconds of the parts of a program that runs once."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures a part by name."""
        began = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - began


class Gate:
    """Feeds a training loop one batch at a time, whenever the coordinator asks for a step.

    A step lasts from handing a batch out until the loop asks for the next one: forward, backward, update and whatever
    else the loop does for every batch. That works with any loop that reads an iterator, without touching the loop.
    """

    def __init__(self) -> None:
        self._answers = Answers()

    def batches(self, batches: Sequence[Batch], **facts: Any) -> Iterator[Batch]:
        """The batches in turn, until the coordinator closes stdin. facts: anything worth a place in the results."""
        self._answers.say(ready=facts)
        _forget_peak()
        done = 0
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.perf_counter()
                yield batches[done % len(batches)]
                seconds.append(time.perf_counter() - began)
                done += 1
            self._answers.say(seconds=seconds, peak_mib=peak_mib())


def _forget_peak() -> None:
    """VmHWM becomes the present size, so that it tells of the steps and not of the set-up (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory includes the set-up: /proc/self/clear_refs cannot be written", file=sys.stderr)


def peak_mib() -> float | None:
    """VmHWM of this process in MiB; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None


def versions(*names: str) -> dict[str, str]:
    """Versions of the interpreter and of distributions."""
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in names}}
