"""From a Paddle program and its parameters to the canonical graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from fullquant.errors import ModelError
from fullquant.readers.graph_builder import Array, GraphBuilder
from fullquant.readers.halves import HALVES
from fullquant.readers.paddle_ops import LEGACY, translate
from fullquant.readers.pixels import check_pixels_are_cast
from fullquant.readers.program import AttrValue, PaddleOp, Program, VariableRef
from fullquant.readers.refusals import CONTROL_FLOW, Refused, reason_of, refusal
from fullquant.readers.signature import check_inputs, choose_output, input_dims


def classifier_of(program: Program, output_name: str | None = None) -> Program:
    """The part of a program that one output depends on, checked: one float32 input, operators that have translations.

    output_name: the output that is meant, where there are several. Raises ModelError, and UnsupportedOperatorError with
    every operator that cannot be read; all of one line.
    """
    output = choose_output(program.path, _shapes(program), output_name)
    if len(program.outputs) > 1 or len(program.inputs) > 1:
        ops, needed = _needed(program.ops, output)
        inputs = [variable for variable in program.inputs if variable.name in needed]
        program = replace(program, ops=ops, inputs=inputs, outputs=[output])
    refused = [
        Refused(op.type, op.first_output(), CONTROL_FLOW if op.control_flow else reason_of(op.type))
        for op in program.ops
        if op.control_flow or op.type not in LEGACY
    ]
    if refused:
        raise refusal(program.path, refused)
    _check_types(program)
    return program


def program_to_onnx(
    program: Program, parameters: Mapping[str, Array], input_shape: Mapping[str, Sequence[int]] | None = None
) -> ir.Model:
    """Translates a program that `classifier_of` has checked. input_shape overrides the declared shape of the input;
    -1 leaves a size open.

    Raises ModelError, with one line that names file, operator, variable and remedy.
    """
    variable = program.inputs[0]
    builder = GraphBuilder(program, parameters)
    dims = input_dims(program.path, variable.name, variable.dims or (), input_shape or {})
    builder.add_input(variable.name, np.dtype(np.float32), dims)
    for op in program.ops:
        translate(builder, op)
    model = builder.model()
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def _shapes(program: Program) -> dict[str, Sequence[int | str] | None]:
    """{output: its declared shape}."""
    declared = {name: program.variables.get(name) for name in program.outputs}
    return {name: None if variable is None else variable.dims for name, variable in declared.items()}


def _check_types(program: Program) -> None:
    """One input, a tensor of float32, float16 or bfloat16, or of uint8 that is cast."""
    check_inputs(program.path, [variable.name for variable in program.inputs])
    variable = program.inputs[0]
    floats = {np.dtype(np.float32), *HALVES}
    if variable.dtype not in {*floats, np.dtype(np.uint8)} or variable.dims is None:
        raise ModelError(
            f"{program.path}: input {variable.name!r} is {variable.dtype}, a float32 image is needed (or uint8 behind "
            "which a cast to float32 stands); export a float32 model"
        )
    if variable.dtype not in floats:
        check_pixels_are_cast(program)


def _needed(ops: Sequence[PaddleOp], output: str) -> tuple[list[PaddleOp], set[str]]:
    """The operators that a variable depends on, and all variables that they read.

    A variable may be written twice; then all operators that write it are kept.
    """
    needed = {output}
    kept: list[PaddleOp] = []
    for op in reversed(ops):
        if needed.isdisjoint(name for names in op.outputs.values() for name in names):
            continue
        kept.insert(0, op)
        needed.update(name for names in op.inputs.values() for name in names)
        for value in op.attrs.values():
            needed.update(_referred(value))
    return kept, needed


def _referred(value: AttrValue) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item.name for item in items if isinstance(item, VariableRef)]
