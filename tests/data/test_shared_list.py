from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fullquant
from fullquant.data import shared_list
from fullquant.data.list_parser import ParsedList, parse_list
from fullquant.data.lists import find_images, read_list
from fullquant.data.sampling import Sampling
from fullquant.data.shared_list import default_folder, parse_list_once
from fullquant.errors import DataError

if sys.platform == "win32":
    pytest.skip("lists are not shared there", allow_module_level=True)

_SOURCES = str(Path(fullquant.__file__ or "").resolve().parents[1])


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    file = tmp_path / "train_list.txt"
    file.write_text("".join(f"d/{index}.jpg {index % 7}\n" for index in range(1000)))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were parsed, one entry each time."""
    seen: list[Path] = []

    def parse(file: Path) -> ParsedList:
        seen.append(file)
        return parse_list(file)

    monkeypatch.setattr(shared_list, "parse_list", parse)
    return seen


def _pairs(parsed: ParsedList) -> list[tuple[bytes, int]]:
    return [
        (parsed.text[start : start + length].tobytes(), int(label))
        for start, length, label in zip(parsed.starts, parsed.lengths, parsed.labels, strict=True)
    ]


def _names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{suffix}"))


def test_it_is_the_same_list_and_read_only(listed: Path, folder: Path) -> None:
    shared = parse_list_once(listed, folder)
    assert _pairs(shared) == _pairs(parse_list(listed))
    for array in (shared.text, shared.starts, shared.lengths, shared.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_second_reader_maps_what_the_first_parsed(listed: Path, folder: Path, parses: list[Path]) -> None:
    first, second = parse_list_once(listed, folder), parse_list_once(listed, folder)
    assert parses == [listed]
    assert _pairs(first) == _pairs(second)


@pytest.mark.parametrize("kept", ["text", "starts", "lengths", "labels"])
def test_the_file_lives_as_long_as_its_arrays(listed: Path, folder: Path, kept: str) -> None:
    parsed = parse_list_once(listed, folder)
    last = getattr(parsed, kept)[3:5]
    del parsed
    gc.collect()
    assert len(_names(folder, ".parsed")) == 1
    del last
    gc.collect()
    assert _names(folder, ".parsed") == []


def test_a_changed_list_is_parsed_again(listed: Path, folder: Path, parses: list[Path]) -> None:
    """The same place, size and time of change, as after a copy with cp -p."""
    before, status = parse_list_once(listed, folder), os.stat(listed)
    listed.write_text(listed.read_text().replace("d/1.jpg 1", "d/1.jpg 6"))
    os.utime(listed, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = parse_list_once(listed, folder)
    assert (before.labels[1], after.labels[1]) == (1, 6)
    assert len(parses) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "header", "longer"])
def test_a_damaged_file_is_not_used(listed: Path, folder: Path, damage: str, parses: list[Path]) -> None:
    right = _pairs(parse_list(listed))
    kept = parse_list_once(listed, folder)
    place = next(folder.glob("*.parsed"))
    whole = place.read_bytes()
    del kept
    gc.collect()
    parts = {"empty": b"", "half": whole[: len(whole) // 2], "header": bytes(8) + whole[8:], "longer": whole + b"1"}
    place.write_bytes(parts[damage])
    with open(place, "rb") as user:  # somebody uses it, so that it is not simply removed
        shared_list.fcntl.flock(user, shared_list.fcntl.LOCK_SH)
        again = parse_list_once(listed, folder)
    assert _pairs(again) == right
    assert len(parses) == 2


def test_leftovers_of_killed_processes_are_removed(listed: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "abc.partial").write_bytes(b"half")
    (folder / "abc.parsed").write_bytes(b"of nobody")
    (folder / "used.parsed").write_bytes(b"of somebody")
    with open(folder / "used.parsed", "rb") as user:
        shared_list.fcntl.flock(user, shared_list.fcntl.LOCK_SH)
        parsed = parse_list_once(listed, folder)
        assert _names(folder, ".partial") == []
        assert len(_names(folder, ".parsed")) == 2
        assert (folder / "used.parsed").exists()
    assert len(parsed.labels) == 1000


def test_a_list_that_changes_while_it_is_read_is_an_error(
    listed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(file: Path) -> ParsedList:
        parsed = parse_list(file)
        with open(file, "a") as stream:
            stream.write("new.jpg 1\n")
        return parsed

    monkeypatch.setattr(shared_list, "parse_list", parse)
    with pytest.raises(DataError, match=r"train_list\.txt was changed while it was read"):
        parse_list_once(listed, folder)
    assert _names(folder, ".parsed") == []


def test_without_a_folder_each_parses_for_itself(
    listed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        parsed = parse_list_once(listed, tmp_path / "file" / "folder")
    assert len(parsed.labels) == 1000
    assert "is not shared by the processes" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    listed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with caplog.at_level(logging.WARNING):
        assert len(parse_list_once(listed, folder).labels) == 1000
    assert "No space left" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_the_folder_of_another_user_is_refused(listed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(DataError, match="belongs to another user"):
        parse_list_once(listed, folder)


def test_the_default_folder_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: Path) -> None:
    monkeypatch.setattr(shared_list.tempfile, "gettempdir", lambda: str(tmp_path))
    parsed = parse_list_once(listed, default_folder())
    assert default_folder().stat().st_mode & 0o777 == 0o700
    assert len(parsed.labels) == 1000


def test_errors_of_the_list_name_it(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt cannot be read"):
        parse_list_once(tmp_path / "no.txt", folder)
    (tmp_path / "bad.txt").write_text("a.jpg 1\nb.jpg\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: "):
        parse_list_once(tmp_path / "bad.txt", folder)


def test_image_lists_take_it(image_set: Path, folder: Path) -> None:
    for images in (
        read_list(image_set / "train_list.txt", shared=folder),
        find_images(image_set, "val", shared=folder),
    ):
        assert len(_names(folder, ".parsed")) >= 1
        assert images.labels.tolist() == [index % 5 for index in range(37)]
        assert os.path.exists(images.path(11))
        assert images.spread(5).labels.shape == (5,)


_READER = """
import sys, time
from pathlib import Path
from fullquant.data import shared_list
parsing = shared_list.parse_list
def parse(file):
    print("parsed", end=" ")
    time.sleep(0.5)  # the others come meanwhile
    return parsing(file)
shared_list.parse_list = parse
parsed = shared_list.parse_list_once(Path(sys.argv[1]), Path(sys.argv[2]))
mapped = [line.split()[4] for line in open("/proc/self/maps") if ".parsed" in line]
print(*sorted(set(mapped)), int(parsed.labels.sum()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def readers(listed: Path, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes that read the list at the same time and keep it until their input ends."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(listed), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _SOURCES},
        )
        for _ in range(3)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_process_parses_and_all_map_the_same_file(
    readers: list[subprocess.Popen[str]], listed: Path, folder: Path
) -> None:
    lines = [process.stdout.readline().split() for process in readers if process.stdout is not None]
    assert sorted(len(line) for line in lines) == [2, 2, 3]  # the longest says "parsed"
    assert len({line[-2] for line in lines}) == 1  # the inode
    assert {int(line[-1]) for line in lines} == {int(parse_list(listed).labels.sum())}
    readers[0].communicate("")
    assert len(_names(folder, ".parsed")) == 1
    for process in readers[1:]:
        process.communicate("")
    assert _names(folder, ".parsed") == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_processes_leave_a_file_that_the_next_one_removes(
    readers: list[subprocess.Popen[str]], listed: Path, folder: Path, parses: list[Path]
) -> None:
    for process in readers:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    assert len(_names(folder, ".parsed")) == 1
    parsed = parse_list_once(listed, folder)
    assert parses == [listed]
    del parsed
    gc.collect()
    assert _names(folder, ".parsed") == []


def test_a_million_lines_stay_small(tmp_path: Path, folder: Path) -> None:
    """Memory in bytes a line: the parse at most twice the text and its arrays, then the shared list none at all."""
    count = 1_000_000
    file = tmp_path / "list.txt"
    file.write_text("".join(f"n{i // 45:08d}/n{i // 45:08d}_{i}.JPEG {i // 45}\n" for i in range(count)))
    tracemalloc.start()
    try:
        parsed = parse_list_once(file, folder)
        kept, peak = tracemalloc.get_traced_memory()
        assert peak < 2 * (file.stat().st_size + 16 * count)
        assert kept < 1e6
        tracemalloc.reset_peak()
        for _ in Sampling(count, 256, shuffle=True, drop_last=True, rank=1, world=2).batches(0):
            pass
        assert tracemalloc.get_traced_memory()[1] - kept < 7 * count  # the order: 4 bytes an index, then half of it
    finally:
        tracemalloc.stop()
    assert parsed.labels[123_456] == 123_456 // 45
    start = parsed.starts[999_999]
    assert parsed.text[start : start + parsed.lengths[999_999]].tobytes() == b"n00022222/n00022222_999999.JPEG"
    assert int(parsed.labels.max()) == 22_222
    assert np.array_equal(parsed.labels, parse_list(file).labels)
