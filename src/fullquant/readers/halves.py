"""Paddle programs in float16 or bfloat16 (`amp` level O2, `convert_to_mixed_precision`), read in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from fullquant.formats.param_stream import Array
from fullquant.readers.program import Program, Variable

HALVES = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})


def in_float32(program: Program, parameters: Mapping[str, Array]) -> tuple[Program, dict[str, Array], list[str]]:
    """Variables and parameters of 16 bits in float32, and the names of the types that were there: the weights are the
    same numbers, arithmetic is no longer rounded to 16 bits. Casts to 16 bits: see `OpContext.dtype`.
    """
    variables = {name: _float32(variable) for name, variable in program.variables.items()}
    inputs = [_float32(variable) for variable in program.inputs]
    arrays = {name: a.astype(np.float32) if a.dtype in HALVES else a for name, a in parameters.items()}
    kinds = {v.dtype.name for v in (*program.variables.values(), *program.inputs) if v.dtype in HALVES and v.dtype}
    kinds |= {a.dtype.name for a in parameters.values() if a.dtype in HALVES}
    return replace(program, variables=variables, inputs=inputs), arrays, sorted(kind.upper() for kind in kinds)


def _float32(variable: Variable) -> Variable:
    return replace(variable, dtype=np.dtype(np.float32)) if variable.dtype in HALVES else variable
