"""report.json: what was done to a model and what came out, as values that a program can read again."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fullquant.errors import ReportError
from fullquant.writers.atomic import write_atomically

SCHEMA_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class ResultRow:
    """One measured variant of the model. Shares are fractions 0..1; None: not measured.

    stage: "float", "PTQ" or "QAT". engine: "simulated", "integer", or the runtime ("onnxruntime", "paddle", ...).
    optimised: whether the runtime's graph optimisations were on; None where there are none.
    agreement: same argmax as the float model. same_as_simulated: same argmax as the simulation of this stage.
    mean_kl: KL(float || this), nats. images: how many. latency_ms: median time of one image at batch 1.
    error: why the row has no numbers.
    """

    stage: str
    engine: str
    optimised: bool | None = None
    top1: float | None = None
    top1_stderr: float | None = None
    top5: float | None = None
    agreement: float | None = None
    same_as_simulated: float | None = None
    mean_kl: float | None = None
    images: int = 0
    file: str = ""
    file_bytes: int | None = None
    latency_ms: float | None = None
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class FileEntry:
    """A file that was read or written."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PlacementSummary:
    """How many tensors of each kind are int8 and how many stay float; the reasons of the float ones, counted."""

    target: str
    full_integer: bool
    quantized: Mapping[str, int]
    kept_float: Mapping[str, int]
    float_reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorEntry:
    """The decision for one tensor. grid: such as "int8 [-128, 127]"; scale: smallest and largest step, or None."""

    tensor: str
    kind: str
    grid: str
    reason: str
    scale_min: float | None = None
    scale_max: float | None = None
    channels: int = 1
    shares: str | None = None
    fused: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """The training at one iteration; what was not computed then is None."""

    iteration: int
    loss: float | None = None
    learning_rate: float | None = None
    top1: float | None = None
    agreement: float | None = None
    mean_kl: float | None = None


@dataclass(frozen=True)
class Record:
    """Everything in report.json.

    model, model_format: source folder or file, and its format.
    config: the settings as used; config_digest: see `digest`.
    kept: which stage the written files hold ("PTQ" or "QAT"), and kept_reason why.
    skipped_images: unreadable images left out. notes: remarks such as a saturating processor, one sentence each.
    """

    model: str
    model_format: str
    config: Mapping[str, Any]
    config_digest: str
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    rows: tuple[ResultRow, ...]
    placement: PlacementSummary | None = None
    tensors: tuple[TensorEntry, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    inputs: tuple[FileEntry, ...] = ()
    outputs: tuple[FileEntry, ...] = ()
    kept: str = ""
    kept_reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped_images: int = 0
    notes: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: utc_now())
    schema: int = SCHEMA_VERSION


def utc_now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def digest(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the settings, whatever the order of their keys."""
    text = json.dumps(_plain(config), sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def file_entry(path: str | os.PathLike[str]) -> FileEntry:
    """Size and SHA-256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return FileEntry(os.fspath(path), os.path.getsize(path), total.hexdigest())


def to_json(record: Record) -> str:
    """Strict JSON (NaN and infinities become null), indented, keys in the order of the fields."""
    return as_json(record)


def as_json(value: Any) -> str:
    """The same of any dataclass of plain values."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Record:
    """The inverse of `to_json`; an optional NaN comes back as None. Raises ReportError for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ReportError(f"the report is not JSON: {error}") from None
    version = value.get("schema") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise ReportError(f"the report has schema {version}, this program reads {SCHEMA_VERSION}")
    try:
        return _build(Record, value)
    except (TypeError, ValueError, KeyError) as error:
        raise ReportError(f"the report does not fit its schema: {error}") from None


def write_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write report.json; readers see the old file or the new one, never a part. Raises ExportError naming the file."""
    write_atomically(path, to_json(record).encode("utf-8"))


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read report.json. Raises ReportError naming the file."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    except (ReportError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: {error}") from None


def _plain(value: Any) -> Any:
    """Dictionaries, lists, strings, numbers, booleans and None only; NumPy scalars through their .item()."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [_plain(entry) for entry in value]
        return sorted(entries, key=str) if isinstance(value, (set, frozenset)) else entries
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _build(kind: type[_T], value: Mapping[str, Any]) -> _T:
    """A dataclass from its `_plain` form, every field checked against its annotation."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind.__name__} is {type(value).__name__}, expected an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {unknown[0]!r}")
    return kind(**{name: _checked(hints[name], entry, f"{kind.__name__}.{name}") for name, entry in value.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _checked(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_checked(arguments[0], entry, where) for entry in value)
    if origin is not None and isinstance(value, Mapping) and origin is not tuple:
        return {key: _checked(arguments[1], entry, where) for key, entry in value.items()}
    if hint is Any:
        return value
    if hint is float and value is None:  # NaN was written as null
        return math.nan
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # Python 3.10 takes tuple[X, ...] for a type as well.
    plain = origin is None and isinstance(hint, type)
    if plain and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{where} is {value!r}")
