from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fullquant.data import list_parser
from fullquant.data.list_parser import parse_list
from fullquant.data.lists import UNLABELLED, ImageList, find_images, read_class_folders, read_flat_folder, read_list
from fullquant.errors import DataError


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def _parsed(path: Path) -> list[tuple[bytes, int]]:
    parsed = parse_list(path)
    return [
        (parsed.text[start : start + length].tobytes(), int(label))
        for start, length, label in zip(parsed.starts, parsed.lengths, parsed.labels, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a.jpg 3\nb.jpg 14\n", [(b"a.jpg", 3), (b"b.jpg", 14)]),
        (b"a.jpg 3\r\nb.jpg 14\r\n", [(b"a.jpg", 3), (b"b.jpg", 14)]),
        (b"a.jpg 3\n\n  \n\r\nb.jpg 14", [(b"a.jpg", 3), (b"b.jpg", 14)]),
        (b"my dir/a b.jpg 3\n", [(b"my dir/a b.jpg", 3)]),
        (b"a.jpg\t3\n", [(b"a.jpg", 3)]),
        (b"  a.jpg   3  \n", [(b"a.jpg", 3)]),
        (b"\xef\xbb\xbfa.jpg 3\n", [(b"a.jpg", 3)]),
        (b"a.jpg -1\n", [(b"a.jpg", -1)]),
        (b"a 2 1\n", [(b"a 2", 1)]),
        (b"a2 0000000000007\n", [(b"a2", 7)]),
        ("Übung/é.jpg 5\n".encode(), ("Übung/é.jpg".encode(), 5)),
        (b"\n\na.jpg 2147483647\n", [(b"a.jpg", 2147483647)]),
    ],
)
def test_lines_are_read(tmp_path: Path, text: bytes, expected: object) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(text)
    assert _parsed(file) == (expected if isinstance(expected, list) else [expected])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a.jpg 1\nb.jpg\nc.jpg 2\n", 2),
        (b"a.jpg 1\n\n\nb.jpg cat\n", 4),
        (b"12\n", 1),
        (b"a.jpg -2\n", 1),
        (b"a.jpg 4294967296\n", 1),
        (b"a.jpg 1_0\n", 1),
        (b"a.jpg 1.0\n", 1),
    ],
)
def test_bad_line_is_named(tmp_path: Path, text: bytes, line: int) -> None:
    file = tmp_path / "train_list.txt"
    file.write_bytes(text)
    with pytest.raises(DataError, match=rf"train_list\.txt:{line}: ") as caught:
        parse_list(file)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Zs", "Zl", "Zp", "Cc", "Cs"]), min_size=1, max_size=12),
            st.integers(-1, 2**31 - 1),
        ),
        min_size=1,
        max_size=30,
    ),
    ending=st.sampled_from(["\n", "\r\n", "\n\n"]),
    block=st.integers(1, 40),
)
def test_blocks_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int]], ending: str, block: int
) -> None:
    file = tmp_path_factory.mktemp("list") / "list.txt"
    file.write_bytes("".join(f"{path} {label}{ending}" for path, label in entries).encode())
    before = list_parser._BLOCK_BYTES
    try:
        list_parser._BLOCK_BYTES = block
        assert _parsed(file) == [(path.encode(), label) for path, label in entries]
    finally:
        list_parser._BLOCK_BYTES = before


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(("\ufeffa.jpg 1\r\n").encode(encoding))
    with pytest.raises(DataError, match=r"list\.txt is UTF-16.*save it as UTF-8"):
        parse_list(file)


def test_unreadable_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "fromfile", refuse)
    with pytest.raises(DataError, match=r"list\.txt cannot be read: Permission denied"):
        parse_list(tmp_path / "list.txt")


def test_empty_list_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="is empty"):
        parse_list(file)


def test_list_file_with_root(image_set: Path, tmp_path: Path) -> None:
    images = read_list(image_set / "train_list.txt")
    assert len(images) == images.labelled == 37
    assert images.path(3) == os.path.join(image_set, "images/03.jpg")
    assert images.label(8) == 3
    elsewhere = tmp_path / "other.txt"
    elsewhere.write_text("03.jpg 1\n")
    assert os.path.exists(read_list(elsewhere, root=image_set / "images").path(0))


def test_wrong_root_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "train_list.txt").write_text("nowhere/a.jpg 1\nnowhere/b.jpg 1\n")
    with pytest.raises(DataError, match=r"the images are not under .*the first is .*nowhere/a\.jpg"):
        find_images(tmp_path, "train")


def test_subset(image_set: Path) -> None:
    images = find_images(image_set, "val")
    part = images.subset([5, 3])
    assert [part.relative_path(index) for index in range(2)] == ["images/05.jpg", "images/03.jpg"]
    assert part.labels.tolist() == [0, 3]


@pytest.mark.parametrize("indices", [range(37), range(3, 30, 4), range(5, 5), range(30, 3, -4)])
def test_subset_of_a_range(image_set: Path, indices: range) -> None:
    images = find_images(image_set, "val")
    part, listed = images.subset(indices), images.subset(list(indices))
    assert [part.path(k) for k in range(len(part))] == [listed.path(k) for k in range(len(listed))]
    np.testing.assert_array_equal(part.labels, images.labels[list(indices)])
    assert np.shares_memory(part.labels, images.labels) == (indices.step > 0 and len(indices) > 0)


def test_subset_beyond_the_list_is_an_error(image_set: Path) -> None:
    with pytest.raises(IndexError):
        find_images(image_set, "val").subset(range(30, 40))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 200), count=st.integers(1, 220), seed=st.integers(0, 5))
def test_spread_takes_one_of_each_part(length: int, count: int, seed: int) -> None:
    images = ImageList.from_paths("/", [f"{index}.jpg" for index in range(length)], list(range(length)))
    chosen = images.spread(count, seed).labels.tolist()
    assert chosen == images.spread(count, seed).labels.tolist()
    if count >= length:
        assert chosen == list(range(length))
    else:
        assert [index for index in chosen if not 0 <= index < length] == []
        parts = [(k * length // count, (k + 1) * length // count) for k in range(count)]
        assert [low <= index < high for index, (low, high) in zip(chosen, parts, strict=True)] == [True] * count


def test_spread_does_not_fall_into_step_with_the_classes() -> None:
    """Ten classes that take turns: every tenth image would be of one class."""
    images = ImageList.from_paths("/", [str(index) for index in range(2000)], [index % 10 for index in range(2000)])
    assert set(images.spread(200).labels.tolist()) == set(range(10))


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/zebra/1.jpg", "train/ant/b.png", "train/ant/a.JPEG", "val/zebra/9.jpg"):
        _image(tmp_path / name)
    (tmp_path / "train/ant/notes.txt").write_text("no image")
    (tmp_path / "train/empty").mkdir()
    train, val = find_images(tmp_path, "train"), find_images(tmp_path, "val")
    assert train.classes == ("ant", "zebra")
    assert [train.relative_path(index) for index in range(3)] == ["ant/a.JPEG", "ant/b.png", "zebra/1.jpg"]
    assert train.labels.tolist() == [0, 0, 1]
    assert val.labels.tolist() == [1]  # zebra keeps its label though ant has no validation image


def test_unknown_validation_class(tmp_path: Path) -> None:
    _image(tmp_path / "train/ant/1.jpg")
    _image(tmp_path / "val/bee/1.jpg")
    with pytest.raises(DataError, match="bee has no counterpart among the 1 training classes"):
        find_images(tmp_path, "val")


def test_class_folders_without_train_and_val(tmp_path: Path) -> None:
    _image(tmp_path / "ant/1.jpg")
    assert find_images(tmp_path, "train").labels.tolist() == [0]
    assert read_class_folders(tmp_path).classes == ("ant",)
    with pytest.raises(DataError, match="no val images"):
        find_images(tmp_path, "val")


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    _image(tmp_path / "ant/1.jpg")
    for hidden in ("ant/._1.jpg", ".thumbnails/1.jpg", "bee/._2.jpg"):  # macOS and file browsers leave such
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no image")
    images = find_images(tmp_path, "train")
    assert (images.classes, len(images)) == (("ant",), 1)


def test_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is not a folder \(Global\.data_dir\)"):
        find_images(tmp_path / "file", "train")


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    _image(tmp_path / "b.png")
    _image(tmp_path / "a.jpg")
    images = find_images(tmp_path, "train")
    assert [images.relative_path(index) for index in range(2)] == ["a.jpg", "b.png"]
    assert images.labels.tolist() == [UNLABELLED] * 2
    assert images.labelled == 0
    assert len(read_flat_folder(tmp_path)) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_data_says_what_was_looked_for(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match=rf"looked for {split}_list\.txt and the folder {split}/"):
        find_images(tmp_path, split)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data folder .*nowhere does not exist"):
        find_images(tmp_path / "nowhere", split)  # type: ignore[arg-type]
    for read in (read_list, read_class_folders, read_flat_folder):
        with pytest.raises(DataError, match="does not exist"):
            read(tmp_path / "nowhere")


def test_labels_must_fit_the_paths() -> None:
    with pytest.raises(DataError, match="2 paths"):
        ImageList.from_paths("/", ["a", "b"], [1])
    assert ImageList.from_paths("/", []).labels.dtype == np.int32
