"""Images a second of ImageLoader against a bare loop that only decodes and resizes, in the same run.

    python benchmarks/loader.py
    python benchmarks/loader.py --data /path/to/imagenet --images 1000

The bare loop opens each file with Pillow, cuts the same random crop (or, with --mode eval, takes the whole image) and
resizes it with the same filter: no normalising, no batches, nothing handed over. With n workers, n processes share the
files and answer with one line. Loader and bare loop take turns, after one round that is not counted; the figures are
medians over the rounds, the efficiency is the median of the ratios of neighbouring rounds. Without --data, photo-like
JPEGs are drawn: 500 x 375, or --size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from fullquant.data import Augment, ImageList, ImageLoader, Preprocess, find_images
from fullquant.data.augment import crop_box

_INPUT, _SHORT_SIDE, _BATCH = 224, 256, 32
_Box = tuple[int, int, int, int]


def draw_images(folder: Path, count: int, width: int, height: int) -> ImageList:
    """JPEGs with detail at all scales, as photographs have: noise of each octave added up, quality 90."""
    random = np.random.default_rng(0)
    for index in range(count):
        total = np.zeros((height, width, 3), np.float32)
        for octave in range(7):
            cells = random.integers(0, 256, (3 << octave, 4 << octave, 3), dtype=np.uint8)
            layer = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(layer, np.float32) / 2 ** (octave + 1)
        Image.fromarray(np.clip(total, 0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
    return ImageList.from_paths(folder, [f"{index}.jpg" for index in range(count)])


def bare(work: Sequence[tuple[str, _Box | None]]) -> None:
    """Decode and resize: the crop to the input's size, or the short side to 256."""
    for path, box in work:
        with Image.open(path) as opened:
            image = opened if opened.mode == "RGB" else opened.convert("RGB")
            if box is not None:
                resized = image.crop(box).resize((_INPUT, _INPUT), Image.Resampling.LANCZOS)
            else:
                factor = _SHORT_SIDE / min(image.size)
                size = (round(image.width * factor), round(image.height * factor))
                resized = image.resize(size, Image.Resampling.LANCZOS)
            np.asarray(resized)


def serve_bare(work: Sequence[tuple[str, _Box | None]]) -> None:
    """A process of the bare loop: one round for each line that comes in."""
    for _ in sys.stdin:
        bare(work)
        print("done", flush=True)


class BareProcesses:
    """n processes (0: this one) that share the work of a round."""

    def __init__(self, work: list[tuple[str, _Box | None]], count: int) -> None:
        self._work, self._children = work, [self._start(work[rank::count]) for rank in range(count)]

    def _start(self, share: list[tuple[str, _Box | None]]) -> subprocess.Popen[str]:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(share, file)
        command = [sys.executable, __file__, "--child", file.name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> None:
        """One round."""
        if not self._children:
            bare(self._work)
        for child in self._children:
            _stream(child.stdin).write("\n")
            _stream(child.stdin).flush()
        for child in self._children:
            _stream(child.stdout).readline()

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.communicate()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def work_of(images: ImageList, augment: Augment | None) -> list[tuple[str, _Box | None]]:
    """Path and crop of each image, the crop being the one that the loader draws in epoch 0."""
    work: list[tuple[str, _Box | None]] = []
    for index in range(len(images)):
        path, box = images.path(index), None
        if augment is not None:
            with Image.open(path) as image:
                box = crop_box(image.width, image.height, augment, augment.generator(0, index))
        work.append((path, box))
    return work


def compare(images: ImageList, augment: Augment | None, workers: int, rounds: int) -> str:
    """One line of the table."""
    preprocess = Preprocess(_INPUT, _SHORT_SIDE, fast_decode="never")
    loops = BareProcesses(work_of(images, augment), workers)
    with ImageLoader(images, preprocess, _BATCH, augment=augment, workers=workers) as loader:

        def iterate() -> None:
            for _batch, _labels in loader:
                pass

        pairs = [(seconds(loops.run), seconds(iterate)) for _ in range(rounds + 1)][1:]
    loops.close()
    bare_rate, loader_rate = (len(images) / statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(bare_s / loader_s for bare_s, loader_s in pairs)
    return (
        f"{workers:7d} {bare_rate:10.1f} {loader_rate:10.1f} {statistics.median(ratios):10.3f}"
        f"   {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train_list.txt or train/ (default: drawn images)")
    parser.add_argument("--images", type=int, default=512, help="images of a round (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--mode", choices=("train", "eval"), default="train", help="(default: %(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        work = json.loads(options.child.read_text())
        options.child.unlink()
        serve_bare(work)
        return
    with tempfile.TemporaryDirectory(prefix="fullquant-loader-") as folder:
        if options.data is None:
            images = draw_images(Path(folder), options.images, *options.size)
        else:
            images = find_images(options.data, "train").spread(options.images)
        print(f"{len(images)} images, {options.mode}, {os.cpu_count()} processors, {options.rounds} rounds")
        print("workers   bare/s   loader/s   efficiency (smallest to largest)")
        augment = Augment() if options.mode == "train" else None
        for workers in options.workers:
            print(compare(images, augment, workers, options.rounds), flush=True)


if __name__ == "__main__":
    main()
