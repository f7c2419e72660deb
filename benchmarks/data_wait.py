"""The QAT step with batches that lie in memory, and with those that ImageLoader makes from JPEGs at the same time.

    python benchmarks/data_wait.py --json out/data_wait.json
    python benchmarks/data_wait.py --images /path/to/imagenet --workers 2

Both share the cores: a loader that keeps ahead of the trainer still takes its part of the processor, so the difference
is what decoding costs and not what the trainer waits. Without --images, 512 JPEGs of 500 x 375 are drawn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from alternate import Series, Variant, alternate
from loader import draw_images
from models import Case, case
from results import Report, add_common, ratio

_DRAWN = (512, 500, 375)


def compare(report: Report, chosen: Case, folder: str, given: argparse.Namespace) -> None:
    """One variant after the other, not in turn: a loader would fetch ahead while the other computes."""
    arguments = ["--variant", "qat", *chosen.arguments]
    files = f"JPEGs, workers {given.workers}"
    variants = [
        Variant("in memory", "ours.py", arguments),
        Variant(files, "ours.py", [*arguments, "--images", folder, "--workers", str(given.workers)]),
    ]
    found: dict[str, Series] = {}
    for variant in variants:
        found |= alternate([variant], repeats=given.repeats, warmup=given.warmup, threads=given.threads)
    report.add(
        chosen.title, found, {"step from JPEGs / in memory": ratio(found, files, "in memory")}, batch=chosen.batch
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="folder with a train_list.txt (default: drawn images)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the loader (%(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not counted (%(default)s)")
    add_common(parser, repeats=20)
    given = parser.parse_args()
    report = Report("data_wait", given)
    with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as folder:
        if given.images is None:
            images = draw_images(Path(folder), *_DRAWN)
            lines = (f"{Path(images.path(index)).name} 0\n" for index in range(len(images)))
            (Path(folder) / "train_list.txt").write_text("".join(lines))
        compare(report, case("mobilenetv3_large"), given.images or folder, given)


if __name__ == "__main__":
    main()
