"""Paddle's parameter stream: `*.pdiparams`, `__params__`, and files that hold one parameter each.

A stream is a row of tensors without names. Integers are little-endian. One tensor is

    uint32  version of the variable, 0
    uint64  number of LoD levels, then for each level: uint64 byte length, that many bytes
    uint32  version of the tensor, 0
    int32   length of the description, then a VarType.TensorDesc of that length (element type, dims)
    bytes   the elements, row major

The names are not in the file. A combined file holds the persistable variables of the program in ascending order of
their names (byte order): Paddle sorts them when it saves and again when it loads, in both program forms.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from fullquant.errors import ExportError, ModelError
from fullquant.formats.framework_pb2 import VarType
from fullquant.formats.paddle_types import DTYPE_OF_NUMBER, NUMBER_OF_DTYPE

Array = npt.NDArray[np.generic]

_REMEDY = "the file is damaged or belongs to another model; export or copy it again"


class _Cursor:
    """A position in the bytes of one file; every step is checked against what is left."""

    def __init__(self, data: memoryview, source: Path) -> None:
        self.data = data
        self.source = source
        self.offset = 0
        self.variable = ""

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.source}: {what} at byte {self.offset} (variable {self.variable!r}); {_REMEDY}")

    def take(self, length: int, what: str) -> memoryview:
        left = len(self.data) - self.offset
        if not 0 <= length <= left:
            raise self.error(f"{what} needs {length} bytes, {left} are left")
        start, self.offset = self.offset, self.offset + length
        return self.data[start : self.offset]

    def number(self, layout: str, what: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]
        return value


def _read_version(cursor: _Cursor, what: str) -> None:
    version = cursor.number("<I", what)
    if version != 0:
        cursor.offset -= 4
        raise cursor.error(f"{what} is {version}, 0 is the only one known,")


def _read_tensor(cursor: _Cursor) -> Array:
    """The tensor at the cursor, as a read-only view of the file's bytes."""
    _read_version(cursor, "the variable's format version")
    for _ in range(cursor.number("<Q", "the number of LoD levels")):
        cursor.take(cursor.number("<Q", "the length of a LoD level"), "a LoD level")
    _read_version(cursor, "the tensor's format version")
    description = cursor.take(cursor.number("<i", "the length of the tensor description"), "the tensor description")
    desc = VarType.TensorDesc()
    try:
        desc.ParseFromString(bytes(description))
        if not desc.IsInitialized():  # ParseFromString accepts messages that lack required fields
            raise DecodeError("no element type")
    except DecodeError:
        raise cursor.error("the tensor description cannot be decoded") from None
    dtype = DTYPE_OF_NUMBER.get(int(desc.data_type))
    if dtype is None:
        raise cursor.error(f"element type {int(desc.data_type)} is not one that can be read")
    if any(dim < 0 for dim in desc.dims):
        raise cursor.error(f"negative size in shape {list(desc.dims)}")
    data = cursor.take(math.prod(desc.dims) * dtype.itemsize, f"a {dtype.name} tensor of shape {list(desc.dims)}")
    try:
        array = np.frombuffer(data, dtype=dtype).reshape(tuple(desc.dims))
    except ValueError:  # more dimensions than NumPy has, or a huge size next to a size of 0
        raise cursor.error(f"shape {list(desc.dims)[:8]} cannot be held") from None
    return array


def read_combined(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """Tensors of a combined file, by name.

    names: the persistable variables of the program; they are matched in sorted order (see the module's text).
    Raises ModelError naming file, variable and byte offset where the file does not hold exactly these tensors.
    """
    cursor = _Cursor(_content(path), path)
    tensors: dict[str, Array] = {}
    for name in sorted(names):
        cursor.variable = name
        tensors[name] = _read_tensor(cursor)
    if cursor.offset != len(cursor.data):
        left = len(cursor.data) - cursor.offset
        raise ModelError(f"{path}: {left} bytes follow the last of {len(tensors)} parameters; {_REMEDY}")
    return tensors


def read_single(path: Path, name: str) -> Array:
    """The tensor of a file that holds one parameter. Raises ModelError as `read_combined` does."""
    cursor = _Cursor(_content(path), path)
    cursor.variable = name
    tensor = _read_tensor(cursor)
    if cursor.offset != len(cursor.data):
        raise cursor.error(f"{len(cursor.data) - cursor.offset} bytes follow the tensor")
    return tensor


def read_separate(folder: Path, names: Iterable[str]) -> dict[str, Array]:
    """Tensors of a folder with one file per parameter, each called like its variable."""
    return {name: read_single(folder / name, name) for name in names}


def _content(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); is the parameter file in its place?") from None


def _write_tensor(stream: BinaryIO, name: str, array: npt.NDArray[np.generic]) -> None:
    # ascontiguousarray would turn a 0-d array into a 1-d one; tobytes is row major in any case
    number = NUMBER_OF_DTYPE.get(array.dtype)
    if number is None:
        known = ", ".join(dtype.name for dtype in NUMBER_OF_DTYPE)
        raise ExportError(
            f"parameter {name!r}: Paddle has no element type for {array.dtype}; cast it to one of {known}"
        )
    desc = VarType.TensorDesc(data_type=number, dims=array.shape).SerializeToString()
    stream.write(struct.pack("<IQIi", 0, 0, 0, len(desc)))
    stream.write(desc)
    stream.write(array.tobytes())


def write_combined(stream: BinaryIO, tensors: Mapping[str, npt.NDArray[np.generic]]) -> list[str]:
    """Writes all tensors in Paddle's order (sorted by name); returns the names in that order."""
    names = sorted(tensors)
    for name in names:
        _write_tensor(stream, name, np.asarray(tensors[name]))
    return names


def write_separate(folder: Path, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Sequence[Path]:
    """Writes one file per parameter into `folder`, each called like its variable; returns their paths."""
    paths = []
    for name, array in tensors.items():
        path = folder / name
        with path.open("wb") as stream:
            _write_tensor(stream, name, np.asarray(array))
        paths.append(path)
    return paths
