"""Runs a program of tests/distributed/programs.py in two processes, as torchrun would, and collects what they print."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Seconds between two signs of life: short, so that tests are, and long enough for a machine with other work.
HEARTBEAT = 0.7
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PADDLE_", "TORCHELASTIC_", "FLAGS_selected_gpus")


@dataclass(frozen=True)
class Ended:
    """One process: exit status (negative: killed by that signal) and what it wrote."""

    status: int
    stdout: str
    stderr: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plain_environment(**more: str) -> dict[str, str]:
    """This environment without any launcher's variables, one thread, and the test heartbeat."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)}
    own = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "FULLQUANT_HEARTBEAT": str(HEARTBEAT)}
    return {**kept, **own, "PYTHONPATH": str(ROOT), **more}


def torchrun_variables(size: int) -> list[dict[str, str]]:
    """What torchrun sets, for each process of one machine."""
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    port = str(free_port())
    return [{**common, "MASTER_PORT": port, "RANK": str(k), "LOCAL_RANK": str(k)} for k in range(size)]


def run(
    command: Sequence[str | Path],
    processes: int = 2,
    *,
    timeout: float = 300,
    variables: Mapping[str, str] | None = None,
) -> list[Ended]:
    """`command` (arguments of Python) in so many processes; one process gets no launcher's variables."""
    environments = torchrun_variables(processes) if processes > 1 else [{}]
    arguments = [sys.executable, *map(str, command)]
    started = [
        subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=plain_environment(**own, **(variables or {})),
        )
        for own in environments
    ]  # fmt: skip
    end = time.monotonic() + timeout
    try:
        texts = [process.communicate(timeout=max(1.0, end - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [Ended(p.returncode, out, err) for p, (out, err) in zip(started, texts, strict=True)]
