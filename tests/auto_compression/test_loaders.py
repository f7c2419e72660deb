"""From the keys of Global to lists of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullquant.auto_compression.loaders import (
    FirstImages,
    TrainingData,
    images_of_split,
    train_loader,
    validation_loader,
    with_image,
)
from fullquant.config import Global
from fullquant.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """lists/train.txt and lists/val.txt beside images/<class>/<number>.jpg: 12 images of 8 x 8, sorted by class."""
    lines = []
    for number in range(12):
        name = f"images/{'abc'[number // 4]}/{number:02d}.jpg"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name)
        lines.append(f"{name} {number // 4}\n")
    (tmp_path / "lists").mkdir()
    for split in ("train", "val"):
        (tmp_path / "lists" / f"{split}.txt").write_text("".join(lines))
    return tmp_path


def section(images: Path, **keys: object) -> Global:
    return Global.from_mapping(
        {"data_dir": str(images), "img_size": 8, "resize_size": None, "batch_size": 4, "augment": False, **keys}
    )


def test_total_images_are_spread_over_a_list_sorted_by_class(images: Path) -> None:
    settings = section(images, val_list="lists/val.txt")
    chosen = validation_loader(settings, total_images=6)
    labels = np.concatenate([labels for _, labels in chosen])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    again = validation_loader(settings, total_images=6)
    assert [chosen.images.path(k) for k in range(6)] == [again.images.path(k) for k in range(6)]
    for count in (None, 12, 100):
        assert len(validation_loader(settings, count).images) == 12


@pytest.mark.parametrize("mode", ["never", "training", "always"])
def test_fast_decode_reduces_large_images_where_it_says(images: Path, mode: str) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(images / "images/a/00.jpg")
    sizes = {"resize_size": 8, "augment": {"flip": False}, "train_list": "lists/train.txt", "val_list": "lists/val.txt"}

    def first_images(choice: str) -> tuple[np.ndarray, np.ndarray]:
        settings = section(images, fast_decode=choice, **sizes)
        train = train_loader(settings)
        order = np.concatenate(list(train.sampling.batches(0))).tolist()
        return np.concatenate([b for b, _ in train])[order.index(0)], next(iter(validation_loader(settings)))[0][0]

    (train, val), (full_train, full_val) = first_images(mode), first_images("never")
    assert np.array_equal(train, full_train) == (mode == "never")
    assert np.array_equal(val, full_val) == (mode != "always")


def test_lists_are_relative_to_the_data_folder(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "elsewhere").mkdir()
    monkeypatch.chdir(images / "elsewhere")
    settings = section(images, train_list="lists/train.txt", val_list=str(images / "lists" / "val.txt"))
    assert images_of_split(settings, "train").labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(images_of_split(settings, "val")) == 12
    with pytest.raises(DataError, match=r"lists.no\.txt does not exist \(Global\.val_list, relative to"):
        images_of_split(section(images, val_list="lists/no.txt"), "val")


def test_a_list_may_be_a_folder_of_class_folders(images: Path) -> None:
    (images / "check" / "c").mkdir(parents=True)
    (images / "images" / "c" / "08.jpg").rename(images / "check" / "c" / "08.jpg")
    settings = section(images, train_list="images", val_list="check")
    assert images_of_split(settings, "train").classes == ("a", "b", "c")
    assert images_of_split(settings, "val").labels.tolist() == [2]  # the label that c has in training


@pytest.mark.parametrize("mode", ["error", "skip"])
def test_calibration_follows_on_bad_image(images: Path, mode: str) -> None:
    (images / "images" / "b" / "05.jpg").write_bytes(b"no image")
    source = train_loader(section(images, train_list="lists/train.txt", on_bad_image=mode))
    if mode == "error":
        with pytest.raises(DataError, match=r"05\.jpg"):
            TrainingData(source, "x").calibration(None)
        return
    assert sum(len(batch) for batch in TrainingData(source, "x").calibration(None)) == 11
    assert source.skipped == 1


@pytest.mark.parametrize(
    ("keys", "model", "resized"),
    [
        ({}, (3, 8, 8), (8, 8)),  # the images are 8 x 8
        ({}, (3, 16, 16), 19),
        ({"resize_size": 9}, (3, 8, 8), 9),
        ({"img_size": 8}, (3, 8, 8), 256),
        ({"val_list": "lists/none.txt"}, (3, 8, 8), (8, 8)),
        ({"val_list": "lists/none.txt", "train_list": "lists/none.txt"}, (3, 8, 8), 10),
    ],
)
def test_images_of_the_models_size_are_not_resized(
    images: Path, keys: dict[str, object], model: tuple[int, int, int], resized: object
) -> None:
    lists = {"val_list": "lists/val.txt", "train_list": "lists/train.txt", **keys}
    found = with_image(Global.from_mapping({"data_dir": str(images), **lists}), model, "model")
    assert found.resize_size == resized


def test_one_image_of_another_size_is_enough_to_resize(images: Path) -> None:
    Image.new("RGB", (9, 8)).save(images / "images" / "a" / "00.jpg")
    (images / "val_list.txt").write_text("images/a/00.jpg 0\nimages/a/01.jpg 0\n")
    assert with_image(Global(data_dir=str(images)), (3, 8, 8), "model").resize_size == 10
    (images / "images" / "a" / "00.jpg").write_bytes(b"no image")
    assert with_image(Global(data_dir=str(images)), (3, 8, 8), "model").resize_size == 10


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4, 1])])
def test_the_first_images_of_a_users_loader(count: int, sizes: list[int]) -> None:
    images, labels = np.zeros((9, 3, 2, 2), np.float32), np.arange(9)
    first = FirstImages([(images[k : k + 4], labels[k : k + 4]) for k in (0, 4, 8)], count)
    for _ in range(2):  # it is read again for the second stage
        batches = list(first)
        assert [len(batch) for batch, _ in batches] == sizes
        assert [label for _, own in batches for label in own] == list(range(min(count, 9)))


def test_a_users_loader_of_another_shape_is_refused() -> None:
    batches = [(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64))]
    with pytest.raises(DataError, match=r"'x' has shape \[2, 1, 8, 8\], expected \['any', 3, 'any', 'any'\]"):
        TrainingData(batches, "x", (3, None, None)).calibration(None)
