"""Images a second of QAT with two processes of one thread, against one process of one thread, and one of two threads.

    python benchmarks/scaling.py --json out/scaling.json

A variant is called processes x threads. Every process has the batch size that is given, as with torchrun: two of them
make one step of twice the images.
"""

from __future__ import annotations

import argparse
import statistics

from alternate import Variant, alternate, thread_environment
from models import KNOWN, case, size
from results import Report, add_common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv3_large", help=f"folder, file, or one of {', '.join(KNOWN)}")
    parser.add_argument("--batch", type=int, help="images of a step of one process")
    parser.add_argument("--size", type=size, metavar="H[,W]")
    parser.add_argument("--warmup", type=int, default=4, help="first steps that are not counted (%(default)s)")
    parser.add_argument("--per-turn", type=int, default=4, help="steps before the next variant's turn (%(default)s)")
    add_common(parser, repeats=20)
    given = parser.parse_args()
    report, chosen = Report("scaling", given), case(given.model, given.batch, given.size)
    arguments = ["--variant", "qat", *chosen.arguments]
    # More threads than --threads would compete in the variant of two processes.
    more = thread_environment(2 * given.threads)
    alone, two, threads = (f"{n} x {m}" for n, m in ((1, given.threads), (2, given.threads), (1, 2 * given.threads)))
    found = alternate(
        [
            Variant(alone, "ours.py", arguments),
            Variant(two, "ours.py", arguments, processes=2),
            Variant(threads, "ours.py", arguments, environment=more),
        ],
        repeats=given.repeats, warmup=given.warmup, per_turn=given.per_turn, threads=given.threads,
    )  # fmt: skip
    images = {alone: chosen.batch, two: 2 * chosen.batch, threads: chosen.batch}
    speeds = {name: images[name] / statistics.median(series.seconds) for name, series in found.items()}
    values = {f"images/s, {name}": speed for name, speed in speeds.items()}
    values |= {f"speed of {name} / {alone}": speeds[name] / speeds[alone] for name in (two, threads)}
    report.add(chosen.title, found, values, batch=chosen.batch)


if __name__ == "__main__":
    main()
