"""Loads a Paddle program's parameters and checks them against what the program declares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fullquant.errors import ModelError
from fullquant.formats.param_stream import Array, read_combined, read_separate
from fullquant.readers.program import Variable
from fullquant.readers.wrong_files import refuse_wrong_file


def load_parameters(params: Path, parameters: Sequence[Variable]) -> dict[str, Array]:
    """Parameters by name, from a combined file or from a folder that holds one file per parameter.

    Raises ModelError where a parameter is missing, damaged, or of another type or shape than the program says.
    """
    names = [variable.name for variable in parameters]
    if params.is_dir():
        missing = sorted(name for name in names if not (params / name).is_file())
        if missing:
            raise ModelError(
                f"{params}: no file for parameter {missing[0]!r} ({len(missing)} of {len(names)} are missing); "
                "put the parameter files beside __model__ or name the combined file with params_filename"
            )
        tensors = read_separate(params, names)
    else:
        refuse_wrong_file(params, parameters=True)
        tensors = read_combined(params, names)
    for variable in parameters:
        _check(params, variable, tensors[variable.name])
    return tensors


def _check(params: Path, variable: Variable, tensor: Array) -> None:
    remedy = "the program and the parameters belong to different models"
    # PaddleSlim stores quantized weights as int8 and leaves their declaration at float32; Paddle believes the file
    quantized = tensor.dtype == np.int8 and variable.dtype == np.float32
    if variable.dtype is not None and tensor.dtype != variable.dtype and not quantized:
        raise ModelError(
            f"{params}: parameter {variable.name!r} holds {tensor.dtype}, "
            f"the program declares {variable.dtype}; {remedy}"
        )
    dims = variable.dims
    if dims is None:
        return
    fits = len(dims) == tensor.ndim and all(d < 0 or d == n for d, n in zip(dims, tensor.shape, strict=True))
    if not fits:
        raise ModelError(
            f"{params}: parameter {variable.name!r} has shape {list(tensor.shape)}, "
            f"the program declares {list(dims)}; {remedy}"
        )
