"""A process that answers one JSON line with another, with a time limit; one that dies is told, and started anew."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """`command` is started at the first task, and again after a crash, a time-out or `models` tasks (memory)."""

    def __init__(self, command: Sequence[str], log: Path, models: int = 12) -> None:
        self._command, self._log, self._models = list(command), log, models
        self._process: subprocess.Popen[bytes] | None = None
        self._done = 0

    def ask(self, task: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer; {"error": ...} where there is none."""
        if self._process is None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(dict(task)).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else b""
        if not ready:
            self.close()
            return {"error": f"took longer than {seconds:.0f} s"}
        if not line:
            status = process.wait()
            self.close()
            return {"error": f"the process died (status {status}); see {self._log.name}"}
        self._done += 1
        if self._done % self._models == 0:
            self.close()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
