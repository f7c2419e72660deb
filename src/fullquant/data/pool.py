"""Worker processes for data work: plain child interpreters, fed over pipes.

Not `multiprocessing`: its spawn and forkserver methods import the user's main script again in every child (which
breaks a script without a main guard) and fork copies a process whose torch threads may hold locks. These children
import only `fullquant.data` (NumPy and Pillow, never torch), start in about 0.2 s, and end when their pipe closes, so
none outlives its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullquant.data.pool_worker import read_message, write_message
from fullquant.errors import DataError

# The package is entered as an empty shell, so that fullquant/__init__.py (and with it torch) is not imported.
_BOOTSTRAP = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[2])
package = types.ModuleType("fullquant")
package.__path__ = [sys.argv[1]]
sys.modules["fullquant"] = package
from fullquant.data.pool_worker import main
main()
"""
_PACKAGE = Path(__file__).resolve().parents[1]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Answer:
    """The end of one job: its result, or what went wrong (an exception to raise)."""

    job: Any
    result: Any = None
    error: Exception | None = None


class ProcessPool:
    """`workers` processes that do jobs in any order; one thread a worker hands jobs over and waits for the answer.

    target, arguments: "module:function" under fullquant.data; `function(*arguments)` is called once in each worker and
        returns the function that does a job. Arguments, jobs and results are pickled: keep them small.
    file_descriptors: open files that the workers inherit under the same numbers (shared memory).
    """

    def __init__(
        self, target: str, arguments: tuple[Any, ...], workers: int, *, file_descriptors: Sequence[int] = ()
    ) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._unanswered = 0
        self._processes = [_start(file_descriptors) for _ in range(workers)]
        self._close = weakref.finalize(self, _close, os.getpid(), self._processes, self._jobs)
        for process in self._processes:
            proxy = threading.Thread(
                target=_proxy,
                args=(process, (target, arguments), self._jobs, self._answers),
                name=f"fullquant-data-{process.pid}",
                daemon=True,
            )
            proxy.start()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Ids of the worker processes."""
        return tuple(process.pid for process in self._processes)

    @property
    def unanswered(self) -> int:
        """Jobs submitted whose answers were not fetched yet."""
        return self._unanswered

    def submit(self, job: Any) -> None:
        """Queue one job."""
        self._unanswered += 1
        self._jobs.put(job)

    def answer(self) -> Answer:
        """Wait for the next finished job, in the order of finishing."""
        answer = self._answers.get()
        self._unanswered -= 1
        return answer

    def cancel_waiting(self) -> None:
        """Forget the jobs that no worker has begun."""
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                return
            self._unanswered -= 1

    def close(self) -> None:
        """End the workers; also done when the pool is garbage or the interpreter exits."""
        self._close()


def _start(file_descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise DataError("this Python does not know its own executable; read the images with workers=0")
    path = [os.getcwd() if entry == "" else entry for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", _BOOTSTRAP, str(_PACKAGE), json.dumps(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=tuple(file_descriptors),
        env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
    )


def _proxy(
    process: subprocess.Popen[bytes],
    first: object,
    jobs: queue.SimpleQueue[Any],
    answers: queue.SimpleQueue[Answer],
) -> None:
    """Pass jobs to one worker and its answers back; a dead worker answers its job with an error and takes no more.

    Holds no reference to the pool, which can so be collected while the threads wait.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    started = False
    while True:
        job = jobs.get()
        if job is None:
            return
        try:
            if not started:
                write_message(process.stdin, first)
                started = True
            write_message(process.stdin, job)
            answers.put(_answer(job, read_message(process.stdout)))
        except (EOFError, OSError, ValueError):  # ValueError: the stream was closed under us
            answers.put(Answer(job, error=DataError(_obituary(process))))
            return


def _answer(job: Any, message: tuple[Any, ...]) -> Answer:
    if message[0] == "done":
        return Answer(job, result=message[1])
    error = message[1]
    if isinstance(error, DataError):
        return Answer(job, error=error)
    return Answer(job, error=RuntimeError(f"a data worker failed:\n{message[2]}"))


def _obituary(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return f"data worker {process.pid} closed its pipe; read the images with workers: 0 to see why"
    if code >= 0:
        return f"data worker {process.pid} ended with status {code}; its message is above"
    name = signal.Signals(-code).name
    hint = "; out of memory? lower the workers or the batch size" if -code == signal.SIGKILL else ""
    return f"data worker {process.pid} was killed by {name}{hint}"


def _close(owner: int, processes: list[subprocess.Popen[bytes]], jobs: queue.SimpleQueue[Any]) -> None:
    if os.getpid() != owner:  # a forked copy of the parent exits: the workers aren't its own
        return
    while True:  # nothing waiting may keep a worker busy
        try:
            jobs.get_nowait()
        except queue.Empty:
            break
    for _ in processes:
        jobs.put(None)
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes to a dead process
                    stream.close()
