"""What all commands share: log lines on stderr, one-line errors, the exit status."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import typer
from rich.console import Console
from rich.text import Text

from fullquant.errors import FullquantError

FAILED = 1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_WIDE = 200  # columns where the output is a file or a pipe: tables are not cut there
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class _CurrentStderr:
    """A stream that is sys.stderr at the time of writing: while a progress bar is shown, rich replaces it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class LogLines(logging.Handler):
    """Log records as single lines: time, level from warnings on, message."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(file=cast("IO[str]", _CurrentStderr()))

    def emit(self, record: logging.LogRecord) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        style = _STYLES.get(record.levelno, "")
        line = Text.assemble((clock, "dim"), " ", (level + record.getMessage(), style))
        self._console.print(line, soft_wrap=True, highlight=False)


def run_command_line(app: typer.Typer) -> None:
    """Of several processes only the first speaks of the command line: what is wrong with it, or its --help."""
    if _follows():
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            try:
                app()
            finally:
                _speak()
    app()


def _follows() -> bool:
    """Whether a launcher has started this process as another one than the first."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "PADDLE_TRAINER_ID"))


def _speak() -> None:
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def show_log(verbose: bool = False) -> None:
    """Sends the log of fullquant to stderr; called again, it changes the level only. A command's first line."""
    if _follows():
        _speak()
    log = logging.getLogger("fullquant")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, LogLines) for handler in log.handlers):
        log.addHandler(LogLines())


def output() -> Console:
    """stdout, for tables and results."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """One line on stderr and status 1 for what lies outside fullquant; a bug keeps its traceback.

    Outside lie a FullquantError, and an OSError that names a file (permissions, a name that is taken) or a full disk.
    """
    try:
        yield
    except FullquantError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None and error.errno not in _NO_SPACE:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"{where}{error.strerror}; check the name, its permissions and the free space"
    else:
        return
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(FAILED)


def list_files(console: Console, paths: Sequence[Path]) -> None:
    """One line a file, with its size."""
    for path in paths:
        console.print(Text(f"  {path}  ({path.stat().st_size / 1e6:.2f} MB)"), soft_wrap=True)


def number_list(name: str, counts: Sequence[int]) -> Callable[[str], tuple[float, ...]]:
    """A parser of "0.485,0.456,0.406" for an option that takes so many numbers."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in text.replace("x", ",").split(","))
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not a list of numbers such as {'0.5,' * (counts[0] - 1)}0.5"
            ) from None
        if len(numbers) not in counts:
            raise typer.BadParameter(f"{name} takes {' or '.join(map(str, counts))} numbers, not {len(numbers)}")
        return numbers

    return parse


def size(text: str) -> tuple[int, int]:
    """ "224" or "48,192" (height, width; 48x192 too)."""
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers, default=0) < 1:
        raise typer.BadParameter(f"{text!r} is not a size; write 224, or 48,192 for height and width")
    return numbers[0], numbers[-1]


def device(text: str | None) -> str | None:
    """gpu, cpu, cuda or cuda:<number>; whether there is such a device is found out later."""
    if text is None or text in ("gpu", "cpu", "cuda") or (text.startswith("cuda:") and text[5:].isdigit()):
        return text
    raise typer.BadParameter(f"{text!r} is neither gpu nor cpu (nor cuda:<number>)")
