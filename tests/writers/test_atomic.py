"""Whole files or none: after errors, after crashes, for one file and for groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullquant.errors import ExportError
from fullquant.writers import atomic
from fullquant.writers.atomic import atomic_files, refuse_source_files, write_atomically, write_group_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_an_exception_leaves_the_old_files(tmp_path: Path) -> None:
    paths = [tmp_path / "model", tmp_path / "params"]
    write_group_atomically({paths[0]: b"old model", paths[1]: b"old params"})

    def write_half() -> None:
        with atomic_files(*paths) as (model, _params):
            model.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert [path.read_bytes() for path in paths] == [b"old model", b"old params"]
    assert sorted(os.listdir(tmp_path)) == ["model", "params"]


@pytest.mark.parametrize("failing", range(4))
def test_a_failed_rename_puts_the_old_group_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """Renames of a group of two that replaces two: 0 and 1 move the old files aside, 2 and 3 put the new ones there."""
    paths = [tmp_path / "model", tmp_path / "params"]
    write_group_atomically({paths[0]: b"old model", paths[1]: b"old params"})
    real, calls = os.replace, iter(range(100))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise PermissionError(13, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(ExportError, match="Permission denied"):
        write_group_atomically({paths[0]: b"new model", paths[1]: b"new params"})
    assert [path.read_bytes() for path in paths] == [b"old model", b"old params"]
    assert sorted(os.listdir(tmp_path)) == ["model", "params"]


@pytest.mark.parametrize("renames", range(5))
def test_a_killed_process_leaves_no_half_and_no_mixture(tmp_path: Path, renames: int) -> None:
    """The process dies (os._exit, as by SIGKILL) at each rename in turn."""
    paths = [tmp_path / "model", tmp_path / "params"]
    write_group_atomically({paths[0]: b"old", paths[1]: b"old"})
    script = (
        "import os, sys\n"
        "from fullquant.writers import atomic\n"
        "real, count = os.replace, iter(range(100))\n"
        f"atomic.os.replace = lambda a, b: os._exit(9) if next(count) == {renames} else real(a, b)\n"
        "atomic.write_group_atomically({sys.argv[1]: b'new', sys.argv[2]: b'new'})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=False, timeout=60)
    assert done.returncode == (9 if renames < 4 else 0)
    assert {path.read_bytes() for path in paths if path.exists()} in (set(), {b"old"}, {b"new"})


def test_a_file_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="missing"), atomic_files(tmp_path / "missing"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a folder"):
        write_atomically(tmp_path, b"")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot write"):
        write_atomically(tmp_path / "file" / "model", b"")


def test_the_same_file_twice(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="twice"), atomic_files(tmp_path / "a", tmp_path / "x" / ".." / "a"):
        pass


def test_source_files_are_refused(tmp_path: Path) -> None:
    program = tmp_path / "inference.pdmodel"
    program.write_bytes(b"program")
    for source in (str(tmp_path), str(program)):
        with pytest.raises(ExportError, match="never overwritten"):
            refuse_source_files(source, tmp_path / "new.pdmodel", program)
        refuse_source_files(source, tmp_path / "new.pdmodel")
    refuse_source_files(None, program)
    link = tmp_path / "elsewhere"
    link.symlink_to(tmp_path)
    with pytest.raises(ExportError):
        refuse_source_files(str(tmp_path), link / "inference.pdmodel")


def test_an_onnx_source_protects_itself_and_its_data(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "model_int8.onnx"):
        (tmp_path / name).write_bytes(b"")
    source = str(tmp_path / "model.onnx")
    refuse_source_files(source, tmp_path / "model_int8.onnx")
    for name in ("model.onnx", "model.onnx.data"):
        with pytest.raises(ExportError):
            refuse_source_files(source, tmp_path / name)
