"""A folder that `fullquant quantize` has written, or a single int8 file: what lies there, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fullquant.auto_compression.exporting import ONNX_NAME
from fullquant.auto_compression.loaders import image_sizes
from fullquant.config import Config, load_config
from fullquant.errors import ConfigError, ModelError, ReportError
from fullquant.readers import ModelFiles, find_model, read_model
from fullquant.report.record import Record, read_record

REPORT = "report.json"


@dataclass(frozen=True)
class SavedModel:
    """onnx: the QDQ file. paddle: the int8 program with its parameters. record: the report beside them.

    Each is None where it is not there; one of the two models is.
    """

    folder: Path
    onnx: Path | None
    paddle: ModelFiles | None
    record: Record | None

    @property
    def models(self) -> tuple[Path, ...]:
        """The model files, the ONNX file first."""
        paddle = None if self.paddle is None else self.paddle.model
        return tuple(path for path in (self.onnx, paddle) if path is not None)


def find_saved(path: str | Path) -> SavedModel:
    """What lies in a save_dir; of a model file, that file alone.

    Raises ModelError where there is no int8 model. A report that cannot be read counts as none.
    """
    place = Path(path)
    if place.is_file():
        files = find_model(place)
        onnx = place if files.source_format == "onnx" else None
        found = SavedModel(place.parent, onnx, None if onnx else files, _record(place.parent))
    else:
        onnx = place / ONNX_NAME
        programs = sorted(place.glob("*.pdmodel"))
        if not onnx.is_file() and not programs:
            files = find_model(place)  # says what is there, where there is nothing
            raise ModelError(
                f"{place}: holds {files.model.name}, but neither {ONNX_NAME} nor a .pdmodel; name the file"
            )
        paddle = find_model(place, programs[0].name) if len(programs) == 1 else None
        found = SavedModel(place, onnx if onnx.is_file() else None, paddle, _record(place))
    return found


def _record(folder: Path) -> Record | None:
    try:
        return read_record(folder / REPORT)
    except ReportError:
        return None


def float_model(saved: SavedModel, named: str | Path | None) -> Path | None:
    """The float model to compare with: the one that is named, else the one of the report, if it is still there."""
    if named is not None:
        find_model(Path(named))
        return Path(named)
    inputs = () if saved.record is None else saved.record.inputs
    source = Path(inputs[0].path) if inputs else None
    return source if source is not None and source.is_file() else None


def images_of_record(saved: SavedModel) -> Config:
    """The Global section of the report: the images and the preprocessing that the model was made with.

    Raises ConfigError where there is no report, or none that says so.
    """
    section = {} if saved.record is None else saved.record.config.get("global_section")
    if not isinstance(section, Mapping) or not section:
        raise ConfigError(f"{saved.folder} has no {REPORT} that names the images; give --data or --config")
    return load_config({"Global": {key: value for key, value in section.items() if value is not None}})


def image_shape(saved: SavedModel, size: Sequence[int] | None = None) -> tuple[int, int, int]:
    """(C, H, W) of an image: the model's own, where free the given (height, width), else those of the report.

    Raises ConfigError where nothing says it.
    """
    graph = read_model(saved.models[0]).graph
    channels, *free = (*(image_sizes(graph.inputs[0]) or ()), None, None, None, None)[1:4]
    known = (None, None) if size is None else tuple(size)
    recorded = _recorded_size(saved)
    height, width = (own or asked or noted for own, asked, noted in zip(free, known, recorded, strict=True))
    if channels is None or height is None or width is None:
        raise ConfigError(f"{saved.models[0]}: height and width are free; give --img-size")
    return channels, height, width


def _recorded_size(saved: SavedModel) -> tuple[int | None, int | None]:
    section: Mapping[str, Any] = {} if saved.record is None else saved.record.config.get("global_section") or {}
    size = section.get("img_size")
    return (int(size[0]), int(size[1])) if size else (None, None)


def read_at(path: Path, shape: Sequence[int], output_name: str | None = None) -> ir.Model:
    """The graph of a model file, its input [N, C, H, W] of the given image shape where it is free.

    output_name: as in `read_model`.
    """
    graph = read_model(path, output_name=output_name).graph
    return read_model(path, None, None, {str(graph.inputs[0].name): (-1, *shape)}, output_name)


def recorded_output(saved: SavedModel) -> str | None:
    """The output of the float model that was quantized, where the report names one."""
    section: Mapping[str, Any] = {} if saved.record is None else saved.record.config.get("global_section") or {}
    name = section.get("output_name")
    return None if name is None else str(name)
