"""The int8 Paddle file as a file for devices, by the converters that devices come with; read back and judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullquant.readers import find_model
from fullquant.runtime.paddle_lite.audit import Audit, audit
from fullquant.runtime.paddle_lite.converter import (
    check_targets,
    find_converter,
    paddle_files,
    run_converter,
    supported_operators,
    version_of,
)
from fullquant.runtime.paddle_lite.program import load_optimised
from fullquant.runtime.paddle_lite.source import is_quantized, read_source, source_layers
from fullquant.writers.atomic import atomic_files

log = logging.getLogger("fullquant")

_REPORT_FORMAT = 1


@dataclass(frozen=True)
class Conversion:
    """file: the .nb. report: JSON beside it. quantized: whether the model given was int8."""

    model: Path
    file: Path
    report: Path
    converter: Path
    converter_version: str
    quantized: bool
    audit: Audit

    def as_dict(self) -> dict[str, Any]:
        """What the report holds."""
        content = self.file.read_bytes()
        return {
            "format": _REPORT_FORMAT,
            "model": str(self.model),
            "file": self.file.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "converter": str(self.converter),
            "converter_version": self.converter_version,
            "quantized": self.quantized,
            "fully_on_npu": self.audit.fully_on_npu,
            **dataclasses.asdict(self.audit),
        }


def convert_to_paddle_lite(
    model: str | os.PathLike[str],
    valid_targets: str,
    output: str | os.PathLike[str] | None = None,
    *,
    converter: str | os.PathLike[str] | None = None,
    partition: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Writes Paddle Lite's .nb of a Paddle program, and `<name>.report.json` beside it, both or neither.

    model: a folder, as quantize writes it, or a .pdmodel file. A float model is converted with a warning.
    valid_targets: "arm", "x86", "verisilicon_timvx,arm", ..., the first one preferred.
    output: name of the file, by default model_<first target>.nb beside the model; ".nb" is added where it is missing.
    converter: paddle_lite_opt; found by `find_converter` where None.
    partition: a file that names operators to be left to the processor.
    Raises ConfigError, ModelError, EngineError (no converter), and ExportError where the converter fails.
    """
    targets = check_targets(valid_targets)
    source, params = paddle_files(find_model(Path(model)))
    program = find_converter(converter)
    desc, parameters = read_source(source, params)
    quantized = is_quantized(desc)
    if not quantized:
        log.warning("%s is a float model: it is converted as it is, and computed in float32", source)
    target = _named(output, source.with_name(f"model_{targets[0]}.nb"))
    excluded = None if partition is None else Path(partition)
    with tempfile.TemporaryDirectory(prefix="fullquant-lite-") as folder:
        made = run_converter(program, source, params, targets, Path(folder) / "m", "naive_buffer", partition=excluded)
        read = run_converter(program, source, params, targets, Path(folder) / "p", "protobuf", partition=excluded)
        judged = audit(
            load_optimised(read), targets, supported=supported_operators(program),
            source=source_layers(desc, parameters) if quantized else None,
        )  # fmt: skip
        result = Conversion(made, made, made, program, version_of(program), quantized, judged)
        report = target.with_suffix(".report.json")
        facts = {**result.as_dict(), "model": str(source), "file": target.name}
        with atomic_files(target, report) as (written, described):
            written.write_bytes(made.read_bytes())
            described.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return dataclasses.replace(result, model=source, file=target, report=report)


def _named(output: str | os.PathLike[str] | None, default: Path) -> Path:
    if output is None:
        return default
    path = Path(output)
    return path if path.suffix == ".nb" else path.with_name(f"{path.name}.nb")
