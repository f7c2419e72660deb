"""Finds the files of a model in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fullquant.errors import ModelError
from fullquant.formats.pir_json import is_pir_file
from fullquant.readers.onnx_tensors import external_files
from fullquant.readers.wrong_files import WANTED, refuse_wrong_file

SourceFormat = Literal["program_desc", "pir", "onnx"]

_PATTERNS = ("*.pdmodel", "__model__", "*.json", "*.onnx")
_LAYOUTS = "*.pdmodel + *.pdiparams, __model__ (+ __params__), *.json + *.pdiparams, or *.onnx"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies. params: the combined parameter file, a folder with one file each, or None without either."""

    source_format: SourceFormat
    model: Path
    params: Path | None

    def paths(self) -> list[Path]:
        """Every file of the model, the program first: its parameters, and the external data of an ONNX file.

        Where each parameter has a file of its own, all files of the folder.
        """
        if self.source_format == "onnx":
            return [self.model, *external_files(self.model)]
        if self.params is None or not self.params.is_dir():
            return [path for path in (self.model, self.params) if path is not None]
        return [self.model, *sorted(p for p in self.params.iterdir() if p.is_file() and p != self.model)]

    def size(self) -> int:
        """Bytes of all of them."""
        return sum(path.stat().st_size for path in self.paths())


def find_model(path: Path, model_filename: str | None = None, params_filename: str | None = None) -> ModelFiles:
    """The files of the model at `path`, a folder, a model file, or a prefix ("dir/inference").

    Names that are given win. Without them, in this order: `*.pdmodel`, `__model__`, `*.json`, `*.onnx`; so where both
    forms of a Paddle model lie side by side, the `.pdmodel` is read. Raises ModelError, saying what was looked for and
    what is there, where nothing or more than one candidate is found.
    """
    if not path.is_dir():
        return _from_file(path, model_filename, params_filename)
    model = _named(path, model_filename, "model") if model_filename else _search(path)
    refuse_wrong_file(model)
    return _with_params(model, params_filename)


def _from_file(path: Path, model_filename: str | None, params_filename: str | None) -> ModelFiles:
    if path.is_file():
        if model_filename and model_filename != path.name:
            raise ModelError(f"{path}: is a file, but model_filename says {model_filename!r}; give the folder instead")
        refuse_wrong_file(path)
        return _with_params(path, params_filename)
    for suffix in (".pdmodel", ".json", ".onnx"):
        model = path.with_name(path.name + suffix)
        if model.is_file():
            return _with_params(model, params_filename)
    if not path.parent.is_dir():
        raise ModelError(f"{path}: no such file or folder; model_dir must name the folder of an exported model")
    raise ModelError(f"{path}: no such file or folder; {_listing(path.parent)}; {WANTED}")


def _search(folder: Path) -> Path:
    for pattern in _PATTERNS:
        found = sorted(p for p in folder.glob(pattern) if p.is_file() and _is_program(p))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise ModelError(
                f"{folder}: {len(found)} models match ({names}); say which with model_filename, or name the file"
            )
        if found:
            return found[0]
    below = [f for f in sorted(folder.iterdir()) if f.is_dir() and any(any(f.glob(p)) for p in _PATTERNS)]
    remedy = f"give {below[0]}" if len(below) == 1 else "give the folder of an exported model"
    raise ModelError(f"{folder}: no model here; looked for {_LAYOUTS}; {_listing(folder)}; {remedy}")


def _is_program(path: Path) -> bool:
    return path.suffix != ".json" or is_pir_file(path)


def _named(folder: Path, name: str, what: str) -> Path:
    path = folder / name
    key = "model_filename" if what == "model" else "params_filename"
    if not path.is_file():
        raise ModelError(f"{folder}: no {what} file {name!r}; {_listing(folder)}; name one of them with {key}")
    return path


def _with_params(model: Path, params_filename: str | None) -> ModelFiles:
    if model.suffix == ".onnx":
        return ModelFiles("onnx", model, None)
    source_format: SourceFormat = "pir" if model.suffix == ".json" else "program_desc"
    folder = model.parent
    if params_filename:
        return ModelFiles(source_format, model, _named(folder, params_filename, "parameter"))
    beside = folder / f"{model.stem}.pdiparams"
    if beside.is_file():
        return ModelFiles(source_format, model, beside)
    if model.name == "__model__":
        combined = folder / "__params__"
        return ModelFiles(source_format, model, combined if combined.is_file() else folder)
    found = sorted(folder.glob("*.pdiparams"))
    if len(found) == 1:
        return ModelFiles(source_format, model, found[0])
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ModelError(f"{folder}: several parameter files ({names}); say which with params_filename")
    if (folder / "__params__").is_file():
        return ModelFiles(source_format, model, folder / "__params__")
    return ModelFiles(source_format, model, None)


def no_parameters(files: ModelFiles) -> ModelError:
    """The error for a program with parameters that has no parameter file."""
    folder, beside = files.model.parent, f"{files.model.stem}.pdiparams"
    return ModelError(
        f"{folder}: no parameters for {files.model.name}; looked for {beside}; {_listing(folder)}; "
        "put the parameter file there, or name it with params_filename"
    )


def _listing(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    return f"{folder} holds {_shortened(names)}" if names else f"{folder} is empty"


def _shortened(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
