from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fullquant
from fullquant.data.augment import Augment
from fullquant.data.images import Preprocess
from fullquant.data.lists import ImageList, find_images
from fullquant.data.loader import ImageLoader
from fullquant.errors import ConfigError, DataError

_SMALL = Preprocess(24, 32)
_SOURCES = str(Path(fullquant.__file__ or "").resolve().parents[1])


@pytest.fixture
def images(image_set: Path) -> ImageList:
    return find_images(image_set, "train")


@pytest.fixture
def loader(images: ImageList) -> Iterator[ImageLoader]:
    """Two workers, shuffled, augmented."""
    with ImageLoader(images, _SMALL, 5, augment=Augment(), shuffle=True, workers=2) as loader:
        yield loader


@pytest.fixture
def broken_set(image_set: Path, tmp_path: Path) -> Path:
    """The image set with images 6 and 20 damaged and 7 missing."""
    root = tmp_path / "broken"
    shutil.copytree(image_set, root)
    (root / "images/06.jpg").write_bytes(b"not an image")
    (root / "images/20.jpg").write_bytes((root / "images/20.jpg").read_bytes()[:200])
    (root / "images/07.jpg").unlink()
    return root


def _alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _equal(left: list[tuple[Any, Any]], right: list[tuple[Any, Any]]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def test_batches_are_the_single_images(images: ImageList) -> None:
    loader = ImageLoader(images, _SMALL, 8)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert [len(batch) for batch, _ in batches] == [8, 8, 8, 8, 5]
    assert {(batch.dtype, labels.dtype) for batch, labels in batches} == {(np.dtype("f4"), np.dtype("i8"))}
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), images.labels)
    np.testing.assert_array_equal(batches[1][0][2], _SMALL.load(images.path(10)))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(images: ImageList, workers: int) -> None:
    def read(count: int, epoch: int) -> list[tuple[Any, Any]]:
        with ImageLoader(images, _SMALL, 5, augment=Augment(), shuffle=True, workers=count, prefetch=3) as loader:
            loader.set_epoch(epoch)
            return list(loader)

    alone = read(0, 2)
    assert _equal(alone, read(workers, 2))
    assert not _equal(alone, read(0, 3))


def test_workers_live_over_epochs(loader: ImageLoader) -> None:
    list(loader)
    assert loader._pool is not None
    processes = loader._pool.process_ids
    loader.set_epoch(1)
    list(loader)
    assert loader._pool.process_ids == processes
    loader.close()
    assert not any(_alive(pid) for pid in processes)
    assert len(list(loader)) == len(loader)  # a closed loader starts again


def test_resume_is_the_tail_of_the_epoch(loader: ImageLoader) -> None:
    loader.set_epoch(4)
    full = list(loader)
    loader.set_epoch(4, start_batch=3)
    assert _equal(list(loader), full[3:])
    assert _equal(list(loader), full)  # the offset holds once
    with pytest.raises(ConfigError):
        loader.set_epoch(0, start_batch=99)


def test_batches_stay_the_callers_own(loader: ImageLoader) -> None:
    kept = list(loader)
    copies = [(images.copy(), labels.copy()) for images, labels in kept]
    loader.set_epoch(1)
    list(loader)
    assert _equal(kept, copies)


def test_abandoned_iteration_leaves_no_trace(loader: ImageLoader) -> None:
    full = list(loader)
    for _ in range(3):
        for number, _batch in enumerate(loader):
            if number == 1:
                break
        assert _equal(list(loader), full)


def test_one_iteration_at_a_time(loader: ImageLoader) -> None:
    first = iter(loader)
    next(first)
    assert len(list(loader)) == len(loader)
    with pytest.raises(DataError, match="newer one"):
        next(first)


def test_bad_image_is_an_error(broken_set: Path) -> None:
    images = find_images(broken_set, "train")
    for workers in (0, 2):
        loader = ImageLoader(images, _SMALL, 5, workers=workers)
        with loader, pytest.raises(DataError, match=r"0[67]\.jpg"):
            list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_counted(broken_set: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    images = find_images(broken_set, "train")
    with (
        caplog.at_level(logging.WARNING),
        ImageLoader(images, _SMALL, 5, workers=workers, on_bad_image="skip") as loader,
    ):
        batches = list(loader)
    assert loader.skipped == 3
    assert [name in caplog.text for name in ("06.jpg", "07.jpg", "20.jpg")] == [True] * 3
    seen = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(seen, np.delete(images.labels, [6, 7, 20]))
    np.testing.assert_array_equal(batches[1][0][1], _SMALL.load(images.path(8)))


def test_skipping_keeps_full_batches_full_in_training(broken_set: Path) -> None:
    images = find_images(broken_set, "train")
    loader = ImageLoader(images, _SMALL, 5, drop_last=True, on_bad_image="skip")
    batches = list(loader)
    assert [len(batch) for batch, _ in batches] == [5] * 7
    assert set(batches[1][1].tolist()) == {0, 3, 4}  # images 5, 8, 9 stand in for 6 and 7
    with pytest.raises(DataError, match="every image of a batch"):
        list(ImageLoader(images.subset([6, 7]), _SMALL, 2, drop_last=True, on_bad_image="skip"))
    assert list(ImageLoader(images.subset([6, 7]), _SMALL, 2, on_bad_image="skip")) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_counts_once_in_all_epochs(
    broken_set: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = find_images(broken_set, "train")
    with (
        caplog.at_level(logging.WARNING),
        ImageLoader(images, _SMALL, 5, workers=workers, on_bad_image="skip") as loader,
    ):
        for _ in range(3):
            list(loader)
        with loader.over(images.subset([5, 6, 7])) as other:
            assert [labels.tolist() for _, labels in other] == [[images.label(5)]]
    assert (loader.skipped, len(caplog.records)) == (3, 3)


def test_over_reads_other_images_in_the_same_way(broken_set: Path) -> None:
    images = find_images(broken_set, "train")
    loader = ImageLoader(images, _SMALL, 5, augment=Augment(), shuffle=True, drop_last=True)
    other = loader.over(images.subset([2, 0, 1]), batch_size=2)
    batches = list(other)
    assert [labels.tolist() for _, labels in batches] == [[images.label(2), images.label(0)], [images.label(1)]]
    np.testing.assert_array_equal(batches[0][0][0], _SMALL.load(images.path(2)))
    with pytest.raises(DataError, match=r"06\.jpg"):
        list(loader.over(images.subset([6])))


def test_many_bad_images_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = ImageList.from_paths(tmp_path, [f"{index}.jpg" for index in range(30)])
    loader = ImageLoader(images, _SMALL, 4, on_bad_image="skip")
    assert list(loader) == []
    assert loader.skipped == 30
    assert len(caplog.records) == 6


def test_killed_worker_is_an_error_at_once(loader: ImageLoader) -> None:
    full = list(loader)
    assert loader._pool is not None
    os.kill(loader._pool.process_ids[0], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(DataError, match="killed by SIGKILL; out of memory"):
        list(loader)
    assert time.monotonic() - began < 5
    assert _equal(list(loader), full)  # with new workers


def test_all_workers_killed_during_an_iteration(loader: ImageLoader) -> None:
    iterator = iter(loader)
    next(iterator)
    assert loader._pool is not None
    for pid in loader._pool.process_ids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        list(iterator)


def test_workers_killed_between_abandoned_iterations(loader: ImageLoader) -> None:
    next(iter(loader))
    assert loader._pool is not None
    for pid in loader._pool.process_ids:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(DataError):  # raised if no job of the abandoned iteration met the dead workers
        list(loader)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("settings", [{"workers": -1}, {"prefetch": 0}, {"on_bad_image": "ignore"}, {"batch_size": 0}])
def test_impossible_settings_are_refused(images: ImageList, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ImageLoader(images, _SMALL, **{"batch_size": 4, **settings})


def test_random_crop_contradicts_keep_ratio_pad(images: ImageList) -> None:
    with pytest.raises(ConfigError, match="random_crop"):
        ImageLoader(images, Preprocess.text_line(), 4, augment=Augment())
    ImageLoader(images, Preprocess.text_line(), 4, augment=Augment(random_crop=False))


def _script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A user's script without a main guard, in a process group of its own."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    environment = {**os.environ, "PYTHONPATH": _SOURCES}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        cwd=tmp_path,
    )


def test_script_without_main_guard(image_set: Path, tmp_path: Path) -> None:
    process = _script(
        tmp_path,
        f"""
        import sys
        from fullquant.data import ImageLoader, Preprocess, find_images
        print("once")
        loader = ImageLoader(find_images({str(image_set)!r}, "train"), Preprocess(24, 32), 5, workers=2)
        print(sum(len(labels) for _, labels in loader))
        """,
    )
    out, err = process.communicate(timeout=60)
    assert (out.split(), err, process.returncode) == (["once", "37"], "", 0)


def test_workers_do_not_import_torch(image_set: Path) -> None:
    with ImageLoader(find_images(image_set, "train"), _SMALL, 5, workers=1) as loader:
        next(iter(loader))
        assert loader._pool is not None
        maps = Path(f"/proc/{loader._pool.process_ids[0]}/maps")
        if not maps.exists():
            pytest.skip("no /proc here")
        text = maps.read_text()
    assert "numpy" in text
    assert "torch" not in text
    assert "paddle" not in text


def test_interrupt_ends_script_and_workers(image_set: Path, tmp_path: Path) -> None:
    process = _script(
        tmp_path,
        f"""
        import signal, time
        from fullquant.data import ImageLoader, Preprocess, find_images
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
        loader = ImageLoader(find_images({str(image_set)!r}, "train"), Preprocess(24, 32), 5, workers=2)
        iterator = iter(loader)
        next(iterator)
        print(*loader._pool.process_ids, flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1  # the workers are silent
    assert not any(_alive(pid) for pid in workers)


def test_workers_end_when_the_parent_is_killed(image_set: Path, tmp_path: Path) -> None:
    process = _script(
        tmp_path,
        f"""
        import os, signal
        from fullquant.data import ImageLoader, Preprocess, find_images
        loader = ImageLoader(find_images({str(image_set)!r}, "train"), Preprocess(24, 32), 5, workers=2)
        next(iter(loader))
        print(*loader._pool.process_ids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    out, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    workers = [int(pid) for pid in out.split()]
    assert len(workers) == 2
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)
