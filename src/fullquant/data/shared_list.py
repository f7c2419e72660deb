"""A parsed list file that the processes of a machine share: one parses, the others map the same memory.

A folder holds one file for each list in use: a header, then the arrays of the parsed list. Processes take turns by a
lock on the folder's lock file, so only the first parses. Each user holds a shared lock on the file for as long as its
arrays live; who finds itself the last one removes the file, and what processes that were killed left behind is removed
by the next that comes. A file is named after all that tells one version of a list from another, and appears whole or
not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import logging
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from fullquant.data.list_parser import ParsedList, parse_list
from fullquant.errors import DataError

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)
_MAGIC = int.from_bytes(b"fqlist01", "little")
_HEADER_BYTES = 24  # int64: magic, number of images, bytes of text
_SUFFIX, _PARTIAL = ".parsed", ".partial"
_LOCK = "lock"


def default_folder() -> Path:
    """The folder of this user's parsed lists among the machine's temporary files."""
    user = os.getuid() if sys.platform != "win32" else 0
    return Path(tempfile.gettempdir()) / f"fullquant-lists-{user}"


def parse_list_once(file: Path, folder: Path) -> ParsedList:
    """As `parse_list`, with the work and the memory shared by all processes that name the same `folder`.

    The arrays are read-only. Where the folder cannot be written (no space, no locks, Windows) the list is parsed into
    this process's own memory, with a warning. Raises DataError as `parse_list`, and for a folder of another user.
    """
    if sys.platform == "win32":
        return parse_list(file)
    try:
        before = _version(file)
        _make_private(folder)
        with _locked(folder / _LOCK):
            _remove_unused(folder)
            place = folder / f"{before}{_SUFFIX}"
            mapped = _mapped(place)
            if mapped is not None:
                return mapped
            parsed = parse_list(file)
            if _version(file) != before:
                raise DataError(f"image list {file} was changed while it was read: start again")
            _write(parsed, place)
            del parsed
            _give_freed_memory_back()
            return _mapped(place) or parse_list(file)
    except OSError as error:
        _log.warning("the list %s is not shared by the processes of this machine (%s: %s)", file, folder, error)
        return parse_list(file)


def _give_freed_memory_back() -> None:
    """Ask glibc to; where the runtime has told it to keep large blocks, it would hold the parse's memory for good."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _version(file: Path) -> str:
    """A name for what the file holds now: hash of its place, size, times and inode."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(f"image list {file} cannot be read: {error.strerror or error}") from None
    facts = (os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _make_private(folder: Path) -> None:
    """Create the folder for this user alone: a list from somebody else would name the files that are read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.lstat(folder).st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user: remove it, or set TMPDIR to another folder")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """The folder's exclusive lock; it ends with the process that holds it, however that ends."""
    with open(file, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _remove_unused(folder: Path) -> None:
    """Remove files that no living process uses, and unfinished ones: their writer had the lock, so it is gone."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
    for place in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError), open(place, "rb") as stream:
            _unlink_if_last(stream, place)


def _unlink_if_last(stream: IO[bytes], place: Path) -> None:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        place.unlink(missing_ok=True)


def _write(parsed: ParsedList, place: Path) -> None:
    """Header, starts, lengths, labels and text, one behind the other; under another name until all is written."""
    partial = place.with_suffix(_PARTIAL)
    try:
        with open(partial, "wb", buffering=0) as stream:  # written, not mapped: a full disk is then an OSError
            header = np.array([_MAGIC, len(parsed.labels), len(parsed.text)], np.int64)
            for array in (header, parsed.starts, parsed.lengths, parsed.labels, parsed.text):
                array.tofile(stream)
        os.replace(partial, place)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _mapped(place: Path) -> ParsedList | None:
    """The file's arrays, under a shared lock for as long as any of them lives; None where there is no whole file."""
    try:
        stream = open(place, "rb")  # noqa: SIM115 - the finalizer below closes it
    except FileNotFoundError:
        return None
    fcntl.flock(stream, fcntl.LOCK_SH)
    size = os.fstat(stream.fileno()).st_size
    header = np.frombuffer(stream.read(_HEADER_BYTES).ljust(_HEADER_BYTES, b"\0"), np.int64)
    images, characters = int(header[1]), int(header[2])
    if header[0] != _MAGIC or size != _HEADER_BYTES + 16 * images + characters:
        stream.close()
        place.unlink(missing_ok=True)
        return None
    whole = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    weakref.finalize(whole, _release, os.getpid(), stream, place)  # every array below has `whole` as its base
    edges = np.cumsum([_HEADER_BYTES, 8 * images, 4 * images, 4 * images, characters])
    starts, lengths, labels, text = (whole[a:b] for a, b in itertools.pairwise(edges))
    return ParsedList(text, starts.view(np.int64), lengths.view(np.int32), labels.view(np.int32))


def _release(owner: int, stream: IO[bytes], place: Path) -> None:
    """Give up the shared lock; remove the file if nobody else holds one."""
    if os.getpid() == owner:  # a forked copy shares the lock of the process that it was copied from
        _unlink_if_last(stream, place)
    stream.close()
