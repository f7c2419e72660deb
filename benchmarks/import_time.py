"""What `import fullquant` adds to a bare interpreter, and how long `fullquant --help` takes as a whole.

    python benchmarks/import_time.py

Ends with status 1 where a median is above its limit; then `python -X importtime -c "import fullquant"` names the cause.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from alternate import Series
from results import Report, add_common

IMPORT_LIMIT, HELP_LIMIT = 0.3, 0.5

_COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import fullquant": [sys.executable, "-c", "import fullquant"],
    "fullquant --help": [str(Path(sys.executable).parent / "fullquant"), "--help"],
}


def seconds_of(command: list[str]) -> float:
    """Wall time of a whole process."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, repeats=10)
    given = parser.parse_args()
    for command in _COMMANDS.values():  # the first run writes byte code and fills the page cache
        seconds_of(command)
    found = {name: Series() for name in _COMMANDS}
    for _ in range(given.repeats):
        for name, command in _COMMANDS.items():
            found[name].seconds.append(seconds_of(command))
    medians = {name: statistics.median(series.seconds) for name, series in found.items()}
    added = medians["import fullquant"] - medians["python -c pass"]
    help_time = medians["fullquant --help"]
    values = {
        f"import fullquant, seconds added (limit {IMPORT_LIMIT})": added,
        f"fullquant --help, seconds (limit {HELP_LIMIT})": help_time,
    }
    Report("import_time", given).add("start-up", found, values)
    sys.exit(added > IMPORT_LIMIT or help_time > HELP_LIMIT)


if __name__ == "__main__":
    main()
