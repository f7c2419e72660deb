"""Readers: an exported model, Paddle (three layouts, two program formats) or ONNX, becomes the canonical graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.graph.collection import without_collection
from fullquant.readers.files import ModelFiles, SourceFormat, find_model, no_parameters
from fullquant.readers.halves import in_float32
from fullquant.readers.onnx import load_onnx
from fullquant.readers.onnx_tensors import CONVERTED_FROM
from fullquant.readers.paddle import classifier_of, program_to_onnx
from fullquant.readers.paddle_params import load_parameters
from fullquant.readers.pir import load_pir_program
from fullquant.readers.pixels import TAKES_PIXELS
from fullquant.readers.program_desc import load_program
from fullquant.readers.signature import check_numbers, check_precision, element_types

__all__ = ["OUTPUT_INDEX", "ModelFiles", "SourceFormat", "find_model", "read_model"]

#: Metadata of a Paddle model of several outputs: the place of the one that was chosen, among those of the file.
OUTPUT_INDEX = "fullquant.output_index"


@without_collection()
def read_model(
    path: str | Path,
    model_filename: str | None = None,
    params_filename: str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    output_name: str | None = None,
) -> ir.Model:
    """Reads a model into the canonical graph: an onnx_ir model of ONNX operators, opset 20, variable names kept.

    path: a folder, a model file, or a prefix such as "dir/inference".
    model_filename, params_filename: names within the folder; without them the files are found, see `find_model`.
    input_shape: shape per input name that replaces the declared one; -1 leaves a size open.
    output_name: which output, where the model has several; what only the others need is left out.

    metadata_props of the model: "fullquant.source" (the path as given), "fullquant.source_format" ("program_desc",
    "pir" or "onnx"), "fullquant.model_file", "fullquant.params_file" (the files that were read).
    metadata_props of nodes: "fullquant.op_type" (source operator), "fullquant.namescope" where the file has one.

    Raises ModelError (UnsupportedOperatorError for an operator without a rule): one line with file, operator,
    variable and remedy.
    """
    files = find_model(Path(path), model_filename, params_filename)
    if files.source_format == "onnx":
        model = load_onnx(files.model, input_shape, output_name)
    else:
        load = load_pir_program if files.source_format == "pir" else load_program
        whole = load(files.model)
        program = classifier_of(whole, output_name)
        if files.params is None and program.parameters:
            raise no_parameters(files)
        parameters = load_parameters(files.params, program.parameters) if files.params else {}
        program, parameters, halves = in_float32(program, parameters)
        model = program_to_onnx(program, parameters, input_shape)
        if program.inputs[0].dtype == np.uint8:
            model.metadata_props[TAKES_PIXELS] = "UINT8"
        if halves:
            model.metadata_props[CONVERTED_FROM] = " and ".join(halves)
        model.metadata_props["fullquant.params_file"] = str(files.params or "")
        model.metadata_props[OUTPUT_INDEX] = str(whole.outputs.index(program.outputs[0]))
    check_precision(files.model, element_types(v for node in model.graph for v in node.outputs), "variable")
    check_numbers(files.params or files.model, model.graph.initializers.values())
    model.metadata_props["fullquant.source"] = str(path)
    model.metadata_props["fullquant.source_format"] = files.source_format
    model.metadata_props["fullquant.model_file"] = str(files.model)
    return model
