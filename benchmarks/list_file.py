"""Loads a list file of ImageNet-22k's size in several processes of one machine: seconds and memory against the limits.

    python benchmarks/list_file.py

The list (14.2 million lines, 21,841 classes) is generated in a temporary folder. All processes read it at once with
`read_list(..., shared=folder)`; then each touches the whole list, draws images from it, and passes over one shuffled
epoch of batches of indices. The peak is the largest resident memory of one process (VmHWM, shared pages included);
PSS counts a page shared by n processes as 1/n. The status is 1 if a limit is broken. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_SECONDS = 20.0
MOST_PEAK_MB = 2000.0
_CLASSES = 21_841
_TOUCH_EVERY = 4096  # bytes of a page


def write_list(file: Path, lines: int) -> None:
    """Lines such as "n01440764/n01440764_10026.JPEG 0", sorted by class, and the first image itself."""
    with open(file, "w", encoding="ascii") as stream:
        for label in range(_CLASSES):
            first, last = (lines * edge // _CLASSES for edge in (label, label + 1))
            name = f"n{1_440_764 + 631 * label:08d}"
            stream.write("".join(f"{name}/{name}_{10 + 7 * k}.JPEG {label}\n" for k in range(last - first)))
    image = file.parent / "n01440764" / "n01440764_10.JPEG"
    image.parent.mkdir()
    image.touch()  # read_list wants to see one of a few listed images; it does not open it


def _memory(name: str, field: str) -> float:
    """Megabytes of one field of /proc/self/<name>."""
    for line in Path(f"/proc/self/{name}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/{name} has no {field}")


def _say(facts: dict[str, float]) -> None:
    """Hand the numbers over and wait until all processes are as far."""
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def read(file: Path, shared: Path, rank: int, world: int) -> None:
    """What one process does."""
    import numpy as np

    from fullquant.data.lists import read_list
    from fullquant.data.sampling import Sampling

    base = _memory("status", "VmRSS")
    began = time.perf_counter()
    images = read_list(file, shared=shared)
    _say({"load_s": time.perf_counter() - began, "base_mb": base, "load_peak_mb": _memory("status", "VmHWM")})
    for array in (images._text, images._starts, images._lengths, images.labels):
        array.view(np.uint8)[::_TOUCH_EVERY].max()
    _say({})
    _say({"pss_mb": _memory("smaps_rollup", "Pss"), "rss_mb": _memory("smaps_rollup", "Rss")})
    began = time.perf_counter()
    batches = Sampling(len(images), 256, shuffle=True, drop_last=True, rank=rank, world=world).batches(0)
    first = next(batches)
    shuffled = time.perf_counter()
    count = len(first) + sum(len(batch) for batch in batches)
    passed = time.perf_counter()
    letters = sum(len(images.path(int(index))) for index in first) / len(first)
    named = time.perf_counter()
    images.spread(2000)
    _say(
        {
            "shuffle_s": shuffled - began,
            "epoch_s": passed - shuffled,
            "indices": count,
            "path_us": (named - passed) / len(first) * 1e6,
            "letters": letters,
            "spread_s": time.perf_counter() - named,
            "peak_mb": _memory("status", "VmHWM"),
            "end_pss_mb": _memory("smaps_rollup", "Pss"),
        }
    )


def measure(lines: int, processes: int) -> list[dict[str, float]]:
    """One dictionary of numbers for each process."""
    with tempfile.TemporaryDirectory(prefix="fullquant-list-") as folder:
        file = Path(folder) / "train_list.txt"
        write_list(file, lines)
        print(f"{lines} lines, {file.stat().st_size / 1e6:.0f} MB, {processes} process(es)", flush=True)
        command = [sys.executable, __file__, "--child", str(file), str(Path(folder) / "shared")]
        children = [
            subprocess.Popen(
                [*command, str(rank), str(processes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for rank in range(processes)
        ]
        facts: list[dict[str, float]] = [{} for _ in children]
        for _ in range(4):
            for child, known in zip(children, facts, strict=True):
                assert child.stdout is not None
                known.update(json.loads(child.stdout.readline() or '{"load_s": Infinity, "peak_mb": Infinity}'))
            for child in children:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
        for child in children:
            child.communicate()
        left = [name for name in os.listdir(Path(folder) / "shared") if name.endswith((".parsed", ".partial"))]
        if left:
            print(f"left behind: {left}")
    return facts


def report(facts: list[dict[str, float]]) -> bool:
    """Print the numbers; whether both limits are kept."""
    for rank, known in enumerate(facts):
        print(f"process {rank}: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))
    seconds, peak = max(known["load_s"] for known in facts), max(known["peak_mb"] for known in facts)
    total = sum(known.get("pss_mb", 0.0) for known in facts)
    kept = seconds <= MOST_SECONDS and peak <= MOST_PEAK_MB
    print(f"PSS of all processes with the whole list touched: {total:.0f} MB")
    print(
        f"load {seconds:.1f} s (limit {MOST_SECONDS:.0f}), peak {peak:.0f} MB (limit {MOST_PEAK_MB:.0f}): "
        + ("kept" if kept else "BROKEN")
    )
    return kept


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=14_200_000, help="lines of the list (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes that read it (default: %(default)s)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.child:
        file, shared, rank, world = options.child
        read(Path(file), Path(shared), int(rank), int(world))
        return 0
    if options.lines < _CLASSES or options.processes < 1:
        parser.error(f"at least {_CLASSES} lines and one process")
    return 0 if report(measure(options.lines, options.processes)) else 1


if __name__ == "__main__":
    sys.exit(main())
