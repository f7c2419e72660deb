"""Writing the integer model in every format that its target has."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fullquant.auto_compression.stages import QuantizedModel
from fullquant.errors import ConfigError, ExportError
from fullquant.formats.pir_json import is_pir_file
from fullquant.lint import lint
from fullquant.placement.target import find_target
from fullquant.writers.lite_form import LITE_TARGETS, lite_form
from fullquant.writers.onednn_form import onednn_form
from fullquant.writers.onnx_qdq import write_onnx
from fullquant.writers.program_desc import write_paddle

ONNX_NAME = "model_int8.onnx"


@dataclass(frozen=True)
class ExportedFiles:
    """What was written. Paddle files are None where the placement has zero points, which the format cannot hold.

    paddle_json: the program in Paddle 3's form; it shares paddle_params.
    """

    onnx: Path
    paddle_model: Path | None
    paddle_params: Path | None
    paddle_json: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """All files, the deployable Paddle pair first."""
        files = (self.paddle_model, self.paddle_params, self.paddle_json, self.onnx)
        return tuple(p for p in files if p is not None)


def paddle_names(model_filename: str | None, params_filename: str | None) -> tuple[str, str]:
    """File names of the Paddle pair: those of the source where they are a .pdmodel's, else inference.*.

    "report" is taken: beside the program lies one with the ending .json.
    """
    model, params = Path(model_filename or "").name, Path(params_filename or "").name
    if not model.endswith(".pdmodel") or model == "report.pdmodel":
        model = "inference.pdmodel"
    return model, params if params.endswith(".pdiparams") else f"{model.removesuffix('.pdmodel')}.pdiparams"


def check_save_dir(save_dir: Path, model_dir: Path) -> None:
    """ConfigError where the results would land among the files of the source model; asked before training."""
    source = model_dir if model_dir.is_dir() else model_dir.parent
    if save_dir.resolve() == source.resolve():
        raise ConfigError(
            f"save_dir {save_dir} is the folder of the float model, which is never written to; name another"
        )
    if save_dir.exists() and not save_dir.is_dir():
        raise ConfigError(f"save_dir {save_dir} is a file; name a folder")


def make_save_dir(save_dir: Path) -> None:
    """Makes the folder, and a file in it for a moment. ExportError where that fails: said before the training."""
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"save_dir {save_dir} cannot be written to: {reason}; name another folder") from None


def export(
    quantized: QuantizedModel, folder: Path, names: tuple[str, str], *, onnx_format: bool = True
) -> ExportedFiles:
    """Writes the Paddle pair (where the target allows it) and the ONNX QDQ model into `folder`.

    onnx_format: the form of the Paddle pair, see writers.program_desc; with it the program is written in Paddle 3's
        form too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, placement, qparams = quantized.model, quantized.placement, quantized.qparams
    onnx_path = folder / ONNX_NAME
    target = find_target(placement.target)
    write_onnx(model, placement, qparams, onnx_path, runtime=target.onnx_layout)
    if not target.writes_paddle:
        return ExportedFiles(onnx_path, None, None)
    program, params = folder / names[0], folder / names[1]
    if placement.target in LITE_TARGETS:
        model, placement, qparams = lite_form(model, placement, qparams)
    model, placement, qparams = onednn_form(model, placement, qparams)
    json_path = program.with_suffix(".json") if onnx_format and params.stem == program.stem else None
    if json_path is None:
        _remove_program(program.with_suffix(".json"))
    write_paddle(model, placement, qparams, program, params, json_path=json_path, onnx_format=onnx_format)
    return ExportedFiles(onnx_path, program, params, json_path)


def findings(files: ExportedFiles) -> list[str]:
    """What the lint finds in the files that were written, one sentence each, the file's name in front."""
    written = [path for path in (files.paddle_model, files.onnx) if path is not None]
    return [f"{path.name}: {finding}" for path in written for finding in lint(path)]


def _remove_program(path: Path) -> None:
    """Removes a Paddle 3 program that an earlier run left: it would be read with the parameters of this one."""
    if path.is_file() and is_pir_file(path):
        path.unlink()
