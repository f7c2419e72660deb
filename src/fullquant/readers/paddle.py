"""From a Paddle program and its parameters to the canonical graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from fullquant.errors import ModelError
from fullquant.readers.graph_builder import Array, GraphBuilder
from fullquant.readers.paddle_ops import translate
from fullquant.readers.program import Program, Variable
from fullquant.readers.signature import check_signature, input_dims


def program_to_onnx(
    program: Program, parameters: Mapping[str, Array], input_shape: Mapping[str, Sequence[int]] | None = None
) -> ir.Model:
    """Translates a program. input_shape overrides the declared shape of inputs; -1 leaves a size open.

    Raises ModelError, with one line that names file, operator, variable and remedy.
    """
    variable = _check(program)
    builder = GraphBuilder(program, parameters)
    dims = input_dims(program.path, variable.name, variable.dims or (), input_shape or {})
    builder.add_input(variable.name, np.dtype(np.float32), dims)
    for op in program.ops:
        translate(builder, op)
    model = builder.model()
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def _check(program: Program) -> Variable:
    """The one input, a float32 tensor."""
    check_signature(program.path, [variable.name for variable in program.inputs], program.outputs)
    variable = program.inputs[0]
    if variable.dtype != np.float32 or variable.dims is None:
        raise ModelError(
            f"{program.path}: input {variable.name!r} is {variable.dtype}, a float32 image is needed; "
            "export a float32 model"
        )
    return variable
