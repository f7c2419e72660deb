"""Rules over the files that were written: what runtimes require of an int8 model, checked before a board is at hand.

`lint` reads the files again. It knows nothing of the placement or the scales in memory, so that a fault of a writer, or
of whoever changed the file since, is found.
"""

from __future__ import annotations

from pathlib import Path

from fullquant.lint.finding import Finding
from fullquant.lint.onnx_rules import lint_onnx
from fullquant.lint.paddle import lint_program
from fullquant.readers import find_model
from fullquant.readers.paddle_params import load_parameters
from fullquant.readers.program_desc import load_program

__all__ = ["Finding", "lint", "lint_onnx", "lint_program"]


def lint(path: str | Path, model_filename: str | None = None, params_filename: str | None = None) -> list[Finding]:
    """Findings in a model file: what Paddle Lite's passes require of a .pdmodel, what runtimes do of an ONNX QDQ file.

    path: as for readers.read_model. A file without quantizers has no findings. Paddle 3 programs (.json) are not
    looked at: nothing but PaddlePaddle reads them, and it runs what is written.
    Raises ModelError where the file is missing or damaged.
    """
    files = find_model(Path(path), model_filename, params_filename)
    if files.source_format == "onnx":
        return lint_onnx(files.model)
    if files.source_format == "pir":
        return []
    program = load_program(files.model)
    parameters = load_parameters(files.params, program.parameters) if files.params is not None else {}
    return lint_program(program, parameters)
