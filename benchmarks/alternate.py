"""Several programs measured in one run, one at a time and in turn: A B C, A B C, ...

Each variant lives in a process of its own (workers/*.py) with its own interpreter. Only the one whose turn it is
computes, so that drift of the machine hits all of them alike, and the peak of memory is that of one variant.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

WORKERS = Path(__file__).parent / "workers"
# OpenMP threads spin for a while after their work (libiomp5: 200 ms); the next variant must not compete with them.
_PAUSE_WITH_THREADS = 0.3
_LINES_OF_A_FAILURE = 25


@dataclass(frozen=True)
class Variant:
    """A program to measure. script: a file in workers/; python: the interpreter that has what it needs.

    environment wins over the threads of the run. processes: how many of it work together, as torchrun starts them.
    """

    name: str
    script: str
    arguments: Sequence[str] = ()
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    processes: int = 1


@dataclass
class Series:
    """What a variant's steps took, and what it said about itself."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def thread_environment(threads: int) -> dict[str, str]:
    """The number of threads for every library that has its own variable for it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


# What fullquant does with mallopt (runtime/memory.py), through glibc's variables, for a peer that does not do it.
KEPT_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def _failed(variant: Variant, errors: Path, status: int) -> SystemExit:
    """The end of what a worker wrote to stderr, as the message with which the benchmark ends."""
    lines = errors.read_text(errors="replace").splitlines()[-_LINES_OF_A_FAILURE:]
    return SystemExit("\n".join([*lines, f"{variant.name}: the worker ended with status {status}"]))


def _command(variant: Variant) -> list[str]:
    return [variant.python, str(WORKERS / variant.script), *variant.arguments]


def run_once(variant: Variant, threads: int = 1) -> dict[str, Any]:
    """The one answer of a worker that runs to its end, with the wall time of its process as "seconds"."""
    with tempfile.NamedTemporaryFile(prefix="fullquant-benchmark-", suffix=".log") as log:
        began = time.perf_counter()
        result = subprocess.run(
            _command(variant), stdout=subprocess.PIPE, stderr=log, text=True, stdin=subprocess.DEVNULL, check=False,
            env={**os.environ, **thread_environment(threads), **variant.environment},
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if result.returncode != 0:
            raise _failed(variant, Path(log.name), result.returncode)
    return {**json.loads(result.stdout), "seconds": seconds}


def _team_environment(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of several processes; nothing where there is one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _started(variant: Variant, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[str]:
    """A process of a variant, with pipes for its commands and answers."""
    pipe = subprocess.PIPE
    return subprocess.Popen(_command(variant), env=environment, text=True, stdin=pipe, stdout=pipe, stderr=log)


class _Worker:
    """The processes of one variant, mostly one. A step takes as long as the slowest of them."""

    def __init__(self, variant: Variant, threads: int, errors: Path) -> None:
        self.variant, self._errors = variant, errors
        self._processes: list[subprocess.Popen[str]] = []
        try:
            with errors.open("wb") as log:
                for team in _team_environment(variant.processes):
                    environment = {**os.environ, **thread_environment(threads), **team, **variant.environment}
                    self._processes.append(_started(variant, environment, log))
            self.series = Series(facts=self._answers()[0]["ready"])
        except BaseException:
            self.close()
            raise

    def steps(self, count: int) -> list[float]:
        """Has `count` steps done; their times."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
        answers = self._answers()
        peaks = [answer["peak_mib"] for answer in answers]
        self.series.peak_mib = None if None in peaks else sum(peaks)
        return [max(times) for times in zip(*(answer["seconds"] for answer in answers), strict=True)]

    def _answers(self) -> list[dict[str, Any]]:
        found = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise _failed(self.variant, self._errors, process.wait())
            found.append(json.loads(line))
        return found

    def close(self) -> None:
        """Ends the processes: they leave when their stdin is closed."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _workers(variants: Sequence[Variant], threads: int) -> Iterator[list[_Worker]]:
    """Started one after the other: the set-up of one never runs beside the set-up of another."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fullquant-benchmark-")))
        started = []
        for index, variant in enumerate(variants):
            print(f"setting up: {variant.name}", file=sys.stderr, flush=True)
            started.append(_Worker(variant, threads, folder / f"{index}.log"))
            stack.callback(started[-1].close)
        yield started


def alternate(
    variants: Sequence[Variant], *, repeats: int, warmup: int = 3, per_turn: int = 1, threads: int = 1
) -> dict[str, Series]:
    """`repeats` steps of every variant by name, `per_turn` at a time; `warmup` steps before them are not counted."""
    pause = _PAUSE_WITH_THREADS if threads > 1 else 0.0
    with _workers(variants, threads) as workers:
        for worker in workers:
            worker.steps(warmup)
        while any(len(worker.series.seconds) < repeats for worker in workers):
            for worker in workers:
                time.sleep(pause)
                count = min(per_turn, repeats - len(worker.series.seconds))
                worker.series.seconds += worker.steps(count)
            print(f"{len(workers[0].series.seconds)} of {repeats} steps", file=sys.stderr, flush=True)
        return {worker.variant.name: worker.series for worker in workers}
