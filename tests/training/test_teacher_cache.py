"""The teacher sees an image once, the loss does not change, and the cache keeps to its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fullquant.training.teacher_cache import TeacherCache


def _images(*numbers: int) -> np.ndarray:
    return np.stack([np.full((3, 4, 4), n, np.float32) for n in numbers])


class _Teacher:
    """Counts what it is shown."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += images[:, 0, 0, 0].tolist()
        return {"logits": images[:, 0, 0, :2] * 2, "map": images[:, :1] + 1}


def _ask(cache: TeacherCache, teacher: _Teacher, *numbers: int) -> dict[str, torch.Tensor]:
    images = _images(*numbers)
    return cache.outputs(cache.keys(images), torch.from_numpy(images), teacher)


def _check(found: dict[str, torch.Tensor], *numbers: int) -> None:
    want = _Teacher()(torch.from_numpy(_images(*numbers)))
    assert set(found) == set(want)
    for node, tensor in want.items():
        assert torch.equal(found[node], tensor)


def test_known_images_are_not_shown_again(tmp_path: Path) -> None:
    cache, teacher = TeacherCache(tmp_path / "cache", 1e6), _Teacher()
    _check(_ask(cache, teacher, 1, 2, 3), 1, 2, 3)
    _check(_ask(cache, teacher, 3, 1, 2), 3, 1, 2)
    _check(_ask(cache, teacher, 4, 1, 5, 3), 4, 1, 5, 3)
    assert teacher.seen == [1, 2, 3, 4, 5]
    assert (cache.hits, cache.misses) == (5, 5)
    cache.close()
    assert not (tmp_path / "cache").exists()


def test_an_image_that_differs_in_one_bit_is_another() -> None:
    images = _images(1, 1)
    images[1, 2, 3, 3] = np.nextafter(np.float32(1), np.float32(2))
    first, second = TeacherCache.keys(images)
    assert first != second
    assert TeacherCache.keys(images.transpose(0, 1, 3, 2)[:1]) == [first]


def test_the_size_is_kept_to(tmp_path: Path) -> None:
    entry = 4 * (2 + 16)
    cache, teacher = TeacherCache(tmp_path / "cache", 2 * entry + 1), _Teacher()
    for _ in range(2):
        _check(_ask(cache, teacher, 1, 2, 3, 4), 1, 2, 3, 4)
    assert teacher.seen == [1, 2, 3, 4, 3, 4]
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) == 2 * entry


def test_a_cache_too_small_for_one_image_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, teacher = TeacherCache(tmp_path / "cache", 10), _Teacher()
    for _ in range(2):
        _check(_ask(cache, teacher, 1, 2), 1, 2)
    assert "teacher_cache_gb" in caplog.text
    assert not (tmp_path / "cache").exists()
