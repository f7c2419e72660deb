"""A data set that needs no download: rendered text lines, upright (label 0) or turned by 180 degrees (label 1)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fullquant.data.pool import ProcessPool
from fullquant.data.progress import ProgressBar
from fullquant.data.textline_render import draw_look, encode_jpeg, line_of_text, render
from fullquant.errors import DataError

HARDNESS = 0.2  # PaddleOCR's classifier gets about 95.6% of these right
_MANIFEST = "textlines.json"
_GENERATOR = 1  # raise it when the images change
_SPLITS = {"train": 1, "val": 2}
_LINES_PER_JOB = 50

_Job = tuple[str, str, int, int]


def text_line(split: str, index: int, *, seed: int = 0, hardness: float = HARDNESS) -> tuple[bytes, int]:
    """(JPEG file, label) of one line: the same arguments give the same bytes, with one version of Pillow.

    Odd indices are turned by 180 degrees, before they are compressed. The splits have separate random numbers.
    """
    random = np.random.default_rng((seed, _SPLITS[split], index))
    look = draw_look(random, hardness)
    image = render(line_of_text(random), look, random)
    label = index % 2
    if label:
        image = image.transpose(Image.Transpose.ROTATE_180)
    return encode_jpeg(image, look.quality), label


def ensure_textlines(
    folder: str | os.PathLike[str],
    *,
    train: int = 1000,
    val: int = 2000,
    seed: int = 0,
    hardness: float = HARDNESS,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write `train/*.jpg`, `val/*.jpg` and their PaddleClas lists into `folder`, unless they are there already.

    The set is made in a temporary folder beside `folder` and then renamed, so a half-written set is never seen; an
    earlier set with other arguments is replaced. workers: processes, by default one for each processor (at most 8).
    Raises DataError if `folder` holds anything else.
    """
    target = Path(folder)
    wanted = {"generator": _GENERATOR, "train": train, "val": val, "seed": seed, "hardness": hardness}
    if _manifest(target) == wanted:
        return target
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        counts = {"train": train, "val": val}
        _write_images(making, counts, seed, hardness, _default_workers() if workers is None else workers, progress)
        for split, count in counts.items():
            lines = "".join(f"{split}/{index:06d}.jpg {index % 2}\n" for index in range(count))
            (making / f"{split}_list.txt").write_text(lines, encoding="utf-8")
        (making / _MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        making.chmod(0o755)  # mkdtemp's folders are private
        _move_into_place(making, target, wanted)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def attach_writer(folder: str, seed: int, hardness: float) -> Callable[[_Job], None]:
    """Entry point of a worker: the function that writes lines start..stop of one split."""

    def work(job: _Job) -> None:
        _, split, start, stop = job
        for index in range(start, stop):
            data, _ = text_line(split, index, seed=seed, hardness=hardness)
            (Path(folder) / split / f"{index:06d}.jpg").write_bytes(data)

    return work


def _write_images(
    folder: Path, counts: dict[str, int], seed: int, hardness: float, workers: int, progress: bool
) -> None:
    jobs: list[_Job] = []
    for split, count in counts.items():
        (folder / split).mkdir()
        jobs += [
            (str(folder), split, start, min(start + _LINES_PER_JOB, count)) for start in range(0, count, _LINES_PER_JOB)
        ]
    with ProgressBar("draw text lines", sum(counts.values()), enabled=progress) as bar:
        if workers == 0:
            work = attach_writer(str(folder), seed, hardness)
            for job in jobs:
                work(job)
                bar.advance(job[3] - job[2])
            return
        pool = ProcessPool(f"{__name__}:{attach_writer.__name__}", (str(folder), seed, hardness), workers)
        try:
            for job in jobs:
                pool.submit(job)
            while pool.unanswered:
                answer = pool.answer()
                if answer.error is not None:
                    raise answer.error
                bar.advance(answer.job[3] - answer.job[2])
        finally:
            pool.close()


def _default_workers() -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, processors)


def _manifest(folder: Path) -> object:
    """What the folder's manifest says; None without a readable one."""
    try:
        return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and not (folder / _MANIFEST).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder} holds something other than text lines: name another folder, or empty this one")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name another folder for the text lines")


def _move_into_place(making: Path, target: Path, wanted: object) -> None:
    """Rename the finished folder to `target`; where another process was faster with the same set, keep that one."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        try:
            os.replace(target, old)
        finally:
            shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(making, target)
    except OSError:
        if _manifest(target) != wanted:
            raise
