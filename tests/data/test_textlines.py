from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullquant.data import textline_render, textlines
from fullquant.data.lists import find_images
from fullquant.data.textline_render import draw_look, font_files, line_of_text, render
from fullquant.data.textlines import ensure_textlines, text_line
from fullquant.errors import DataError

pytest.importorskip("matplotlib")


def _fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_set_is_a_paddleclas_data_set(tmp_path: Path) -> None:
    folder = ensure_textlines(tmp_path / "deep" / "lines", train=6, val=10, workers=1, progress=False)
    train, val = find_images(folder, "train"), find_images(folder, "val")
    assert (len(train), len(val)) == (6, 10)
    assert val.labels.tolist() == [0, 1] * 5
    for index in range(10):
        with Image.open(val.path(index)) as image:
            assert image.mode == "RGB"
            assert image.height >= 8
    assert [path.name for path in folder.parent.iterdir()] == ["lines"]  # nothing temporary stays


def test_workers_and_repetition_give_the_same_bytes(tmp_path: Path) -> None:
    one = _fingerprint(ensure_textlines(tmp_path / "a", train=4, val=60, workers=0, progress=False))
    two = _fingerprint(ensure_textlines(tmp_path / "b", train=4, val=60, workers=2, progress=False))
    assert one == two
    assert len(set(one.values())) == len(one)  # no image twice, in neither split


def test_complete_set_is_reused_and_other_arguments_replace_it(tmp_path: Path) -> None:
    folder = ensure_textlines(tmp_path / "a", train=2, val=2, workers=0, progress=False)
    stamp = os.stat(folder / "train/000000.jpg").st_mtime_ns
    began = time.perf_counter()
    ensure_textlines(folder, train=2, val=2, workers=0)
    assert time.perf_counter() - began < 0.5
    assert os.stat(folder / "train/000000.jpg").st_mtime_ns == stamp
    ensure_textlines(folder, train=2, val=3, workers=0, progress=False)
    assert len(find_images(folder, "val")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="holds something other than text lines"):
        ensure_textlines(tmp_path, train=1, val=1)
    with pytest.raises(DataError, match="is a file"):
        ensure_textlines(tmp_path / "mine.txt", train=1, val=1)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(textlines, "text_line", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_textlines(tmp_path / "a", train=1, val=1, workers=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_missing_fonts_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textline_render.importlib.util, "find_spec", lambda _: None)
    font_files.cache_clear()
    with pytest.raises(DataError, match="pip install matplotlib"):
        font_files()
    font_files.cache_clear()


def test_odd_lines_are_turned() -> None:
    """Label 1 is the upright line turned by 180 degrees."""
    data, label = text_line("val", 3)
    assert label == 1
    random = np.random.default_rng((0, 2, 3))
    look = draw_look(random, textlines.HARDNESS)
    upright = render(line_of_text(random), look, random)
    with Image.open(io.BytesIO(data)) as image:
        turned = np.asarray(image.transpose(Image.Transpose.ROTATE_180), np.float32)
    plain = np.asarray(upright, np.float32)
    assert np.abs(turned - plain).mean() < np.abs(turned[::-1, ::-1] - plain).mean()
    assert np.abs(turned - plain).mean() < 12  # JPEG only


def test_hardness_costs_contrast_or_sharpness() -> None:
    def looks(hardness: float) -> list[textline_render.Look]:
        return [draw_look(np.random.default_rng(index), hardness) for index in range(200)]

    assert not any(look.blur or look.noise or look.tilt for look in looks(0))
    assert sum(look.blur > 0 for look in looks(1)) > sum(look.blur > 0 for look in looks(0.2)) > 0


def test_texts_vary() -> None:
    texts = [line_of_text(np.random.default_rng(index)) for index in range(300)]
    assert len(set(texts)) > 250
    assert all(text.strip() and text.isascii() for text in texts)
