"""The worker's side of `pool.ProcessPool`: this module is what the worker process runs."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

_HEADER = struct.Struct("<Q")


def write_message(stream: IO[bytes], message: object) -> None:
    """Send one object: eight bytes of length, then its pickle."""
    body = pickle.dumps(message, protocol=5)
    stream.write(_HEADER.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Receive one object of `write_message`. Raises EOFError when the other side is gone."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    (length,) = _HEADER.unpack(header)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)


def resolve(target: str) -> Callable[..., Any]:
    """The function named "package.module:function"."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def serve(jobs: IO[bytes], results: IO[bytes]) -> None:
    """Answer every job with ("done", result) or ("failed", exception, traceback), until the parent closes the pipe.

    The first message is (target, arguments): `target(*arguments)` returns the function that does the jobs.
    """
    target, arguments = read_message(jobs)
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            job = read_message(jobs)
        except EOFError:
            return
        try:
            work = work or resolve(target)(*arguments)
            answer: tuple[Any, ...] = ("done", work(job))
        except Exception as error:  # whatever it is, the parent raises it: a silent worker would be a hang
            answer = ("failed", error, traceback.format_exc())
        try:
            write_message(results, answer)
        except BrokenPipeError:
            return
        except Exception:  # the answer cannot be pickled: the text of what happened can
            text = answer[2] if answer[0] == "failed" else traceback.format_exc()
            write_message(results, ("failed", None, text))


def main() -> None:
    """Serve on the standard streams; whatever a library prints goes to stderr, out of the protocol's way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes the pipe in turn
    jobs, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = sys.stderr
    serve(jobs, results)
    os._exit(0)  # no interpreter shutdown: nothing here needs it, and the parent waits
