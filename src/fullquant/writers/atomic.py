"""Files that appear whole or not at all, alone or as a group."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fullquant.errors import ExportError


@contextmanager
def atomic_files(*paths: str | os.PathLike[str]) -> Iterator[tuple[Path, ...]]:
    """Gives one temporary name per path; on leaving the block they become `paths`, together.

    The caller writes (and closes) every temporary file inside the block. Then all are flushed to the disk and renamed.
    A single file is replaced in one step: a reader sees the old file or the new one. Of a group, no moment shows a
    mixture of old and new files: the old ones are moved aside first, so a crash in between leaves files missing,
    never half written and never mismatched. An exception inside the block, or while renaming, leaves `paths` as they
    were. Missing parent folders are created.

    Raises ExportError, naming the file, when it cannot be written; other exceptions of the block pass through.
    """
    targets = [Path(path) for path in paths]
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    if len({_absolute(target) for target in targets}) != len(targets):
        raise ExportError(f"one file is to be written twice: {', '.join(map(str, targets))}; give different names")
    temporary = tuple(target.parent / f".{target.name}.{token}.tmp" for target in targets)
    try:
        for target in targets:
            _check_target(target)
        yield temporary
        for name in temporary:
            _flush_to_disk(name)
        _replace_all(temporary, targets, token)
    except OSError as error:
        raise ExportError(_why(error, temporary, targets)) from error
    finally:
        for name in temporary:
            with suppress(OSError):
                name.unlink()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path`: a reader, or a crash, meets the old file or the new one. Raises ExportError."""
    write_group_atomically({path: data})


def write_group_atomically(files: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Writes files that belong together (a program and its parameters), see atomic_files. Raises ExportError."""
    with atomic_files(*files) as temporary:
        for name, data in zip(temporary, files.values(), strict=True):
            name.write_bytes(data)


def refuse_source_files(source: str | None, *paths: str | os.PathLike[str]) -> None:
    """Raises ExportError if writing to one of `paths` would overwrite a file of the model that was read.

    source: the metadata property "fullquant.source", a folder or a file; None (a model made in memory) allows all.
    A folder, and the folder of a Paddle file (a program has parameter files beside it), protects every file that is
    directly in it; an ONNX file protects itself and its external data, whose names begin with the model's.
    """
    if source is None:
        return
    origin = _absolute(Path(source))
    for path in map(Path, paths):
        target = _absolute(path)
        if not target.exists():
            continue
        if origin.suffix == ".onnx" and not origin.is_dir():
            refused = target.parent == origin.parent and target.name.startswith(origin.name)
        else:
            refused = target.parent == (origin if origin.is_dir() else origin.parent)
        if refused:
            raise ExportError(
                f"{path} is a file of the source model ({source}), which is never overwritten; choose another folder"
            )


def _absolute(path: Path) -> Path:
    """The real place that a name stands for, through symbolic links."""
    return Path(os.path.realpath(path))


def _check_target(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise ExportError(f"{target} is a folder; give the name of a file")


def _flush_to_disk(path: Path) -> None:
    # "r+b": Windows flushes only handles opened for writing.
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes renames in `folder` durable where the system lets a folder be opened (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace_all(temporary: tuple[Path, ...], targets: list[Path], token: str) -> None:
    """Renames each temporary file to its target; puts the old files back if one rename fails."""
    aside: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        if len(targets) > 1:
            for target in targets:
                if target.exists():
                    backup = target.parent / f".{target.name}.{token}.old"
                    os.replace(target, backup)
                    aside.append((backup, target))
        for name, target in zip(temporary, targets, strict=True):
            os.replace(name, target)
            placed.append(target)
    except BaseException:
        # A single file has no backup and needs none: its only rename failed.
        for target in placed if len(targets) > 1 else []:
            target.unlink(missing_ok=True)
        for backup, target in aside:
            os.replace(backup, target)
        raise
    for folder in {target.parent for target in targets}:
        _flush_folder(folder)
    for backup, _ in aside:
        with suppress(OSError):
            backup.unlink()


def _why(error: OSError, temporary: tuple[Path, ...], targets: list[Path]) -> str:
    """One line for an OSError; temporary names are given as the names that the user knows."""
    named = dict(zip(map(str, temporary), targets, strict=True))
    where = named.get(str(error.filename), error.filename or targets[0])
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        reason = f"{reason} (was it written inside the block?)"
    return f"cannot write {where}: {reason}; check the folder's permissions and the free space"
