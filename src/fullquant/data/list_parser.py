"""PaddleClas list files, parsed in blocks of NumPy operations: ImageNet-22k has 14.2 million lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullquant.errors import DataError

_BLOCK_BYTES = 1 << 24
_MAX_DIGITS = 9  # any number of nine digits fits int32
_NEWLINE, _RETURN, _SPACE, _TAB, _ZERO = b"\n\r \t0"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_Bytes = npt.NDArray[np.uint8]
_Positions = npt.NDArray[np.int64]
_Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ParsedList:
    """The file's bytes, and per image where its path stands in them, with the label."""

    text: _Bytes
    starts: _Positions
    lengths: npt.NDArray[np.int32]
    labels: _Labels


def parse_list(file: Path) -> ParsedList:
    """Parse every line "path label". Raises DataError with file:line for a bad line, or if nothing is listed."""
    try:
        text = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"image list {file} cannot be read: {error.strerror or error}") from None
    if text[:2].tobytes() in _UTF16_MARKS:
        raise DataError(f"image list {file} is UTF-16, as PowerShell's > writes it; save it as UTF-8")
    if text[:3].tobytes() == _BYTE_ORDER_MARK:
        text = text[3:]
    most = _count_lines(text)
    starts, lengths, labels = np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.int32)
    begin, line_number, found = 0, 1, 0
    while begin < len(text):
        end = _block_end(text, begin)
        line_starts, line_ends = _lines(text, begin, end)
        block = _parse_block(text, line_starts, line_ends, file, line_number)
        here = slice(found, found + len(block[2]))
        starts[here], lengths[here], labels[here] = block
        line_number += len(line_starts)
        begin, found = end, here.stop
    if not found:
        raise DataError(f"image list {file} is empty")
    return ParsedList(text, starts[:found], lengths[:found], labels[:found])


def _count_lines(text: _Bytes) -> int:
    """Lines of the text, blank ones too; the last need not end with a line break."""
    blocks = (text[begin : begin + _BLOCK_BYTES] for begin in range(0, len(text), _BLOCK_BYTES))
    return 1 + sum(int(np.count_nonzero(block == _NEWLINE)) for block in blocks)


def _block_end(text: _Bytes, begin: int) -> int:
    """End of a block of whole lines."""
    end = begin + _BLOCK_BYTES
    while end < len(text):
        breaks = np.flatnonzero(text[begin:end] == _NEWLINE)
        if len(breaks):
            return begin + int(breaks[-1]) + 1
        end += _BLOCK_BYTES
    return len(text)


def _lines(text: _Bytes, begin: int, end: int) -> tuple[_Positions, _Positions]:
    """Where each line of the block starts and where it ends (without its line break)."""
    ends = np.flatnonzero(text[begin:end] == _NEWLINE).astype(np.int64) + begin
    if not len(ends) or ends[-1] != end - 1:
        ends = np.append(ends, end)
    starts = np.empty_like(ends)
    starts[0] = begin
    starts[1:] = ends[:-1] + 1
    ends -= (ends > starts) & (text[ends - 1] == _RETURN)
    return starts, ends


def _parse_block(
    text: _Bytes, starts: _Positions, ends: _Positions, file: Path, first_line: int
) -> tuple[_Positions, npt.NDArray[np.int32], _Labels]:
    """The regular lines all at once; the others, if any, one by one."""
    labels, path_ends, regular = _parse_regular(text, starts, ends)
    keep = np.ones(len(starts), np.bool_)
    for index in np.flatnonzero(~regular):
        line = text[starts[index] : ends[index]].tobytes()
        parsed = _parse_line(line, f"{file}:{first_line + int(index)}")
        if parsed is None:
            keep[index] = False
            continue
        offset, length, labels[index] = parsed
        starts[index] += offset
        path_ends[index] = starts[index] + length
    lengths = (path_ends - starts).astype(np.int32)
    return (starts, lengths, labels) if keep.all() else (starts[keep], lengths[keep], labels[keep])


def _parse_regular(
    text: _Bytes, starts: _Positions, ends: _Positions
) -> tuple[_Labels, _Positions, npt.NDArray[np.bool_]]:
    """(labels, ends of the paths, which lines are regular).

    A regular line is a path, one space or tab, one to nine digits; the path neither begins nor ends with white space.
    The digits are read from the right, all lines in step.
    """
    labels = np.zeros(len(starts), np.int32)
    position = ends - 1
    reading = np.ones(len(starts), np.bool_)
    for power in range(_MAX_DIGITS):
        digit = text[np.maximum(position, 0)] - np.uint8(_ZERO)  # other characters wrap to more than 9
        reading &= (digit < 10) & (position > starts)
        if not reading.any():
            break
        labels += np.where(reading, digit, 0).astype(np.int32) * np.int32(10**power)
        position -= reading
    path_ends = np.maximum(position, starts)
    separator, last, first = text[path_ends], text[np.maximum(path_ends - 1, 0)], text[starts]
    regular = (position < ends - 1) & (path_ends > starts) & _blank(separator) & ~_blank(last) & ~_blank(first)
    return labels, path_ends, regular


def _blank(characters: _Bytes) -> npt.NDArray[np.bool_]:
    blank: npt.NDArray[np.bool_] = (characters == _SPACE) | (characters == _TAB)
    return blank


def _parse_line(line: bytes, where: str) -> tuple[int, int, int] | None:
    """(offset of the path, its length, label) of one line; None for a blank one."""
    fields = line.rsplit(None, 1)
    if not fields:
        return None
    shown = line.decode("utf-8", "replace").strip()
    if len(fields) != 2 or not fields[0].strip():
        raise DataError(f'{where}: expected "path label", found "{shown}"')
    if not fields[1].removeprefix(b"-").isdigit():
        raise DataError(f'{where}: the label (last field) must be a whole number, found "{shown}"')
    label = int(fields[1])
    if not -1 <= label < 2**31:
        raise DataError(f'{where}: the label must be 0 or more (-1: unknown), found "{shown}"')
    path = fields[0].strip()
    return line.index(path), len(path), label
