"""Writes a graph as Paddle's legacy program (`*.pdmodel` + `*.pdiparams`), float or int8.

The int8 form is PaddleSlim's `onnx_format`: quantize_linear / dequantize_linear pairs behind every placed tensor, the
graph outputs included, and weights that are stored as int8 with a dequantize_linear behind them. The older form is in
`paddle_fake_quantize`. Paddle Inference runs
it with the roundings as written; Paddle Lite turns the pairs into scales of its int8 kernels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.formats.param_stream import write_combined
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.writers.atomic import atomic_files, refuse_source_files
from fullquant.writers.paddle_builder import PaddleProgram, ProgramBuilder
from fullquant.writers.paddle_emitter import Emitter
from fullquant.writers.paddle_fake_quantize import FakeQuantizeEmitter
from fullquant.writers.paddle_ops import write_node
from fullquant.writers.paddle_quantization import Quantization
from fullquant.writers.paddle_rows import rows_of_zeros
from fullquant.writers.pir import pir_json
from fullquant.writers.wide_norms import with_split_norms


def write_paddle(
    model: ir.Model,
    placement: Placement | None,
    qparams: Mapping[str, QParams],
    model_path: str | os.PathLike[str],
    params_path: str | os.PathLike[str],
    *,
    json_path: str | os.PathLike[str] | None = None,
    onnx_format: bool = True,
) -> None:
    """Writes `model` as `model_path` (*.pdmodel) and `params_path` (*.pdiparams), both or neither.

    json_path: where to write the same program in Paddle 3's form, which uses the same parameter file.

    placement: None writes the float model; else every placed tensor gets its Q/DQ, with the scales in `qparams`.
    onnx_format: False writes the older form, see `paddle_fake_quantize`.
    Raises ExportError: an operator, grid or missing scale that Paddle's format cannot hold, a file that cannot be
    written, or one that belongs to the model that was read.
    """
    paths = [model_path, params_path, *([] if json_path is None else [json_path])]
    refuse_source_files(model.metadata_props.get("fullquant.source"), *paths)
    program = build_paddle(model, placement, qparams, onnx_format=onnx_format)
    with atomic_files(*paths) as (model_file, params_file, *json_file):
        model_file.write_bytes(program.desc.SerializeToString(deterministic=True))
        with params_file.open("wb") as stream:
            write_combined(stream, program.parameters)
        for file in json_file:
            file.write_bytes(pir_json(program))


def build_paddle(
    model: ir.Model, placement: Placement | None, qparams: Mapping[str, QParams], *, onnx_format: bool = True
) -> PaddleProgram:
    """The program and parameters that `write_paddle` writes. The model is not changed."""
    model, placement = rows_of_zeros(model, placement)
    if placement is not None and not placement.onednn:
        model = with_split_norms(model)
    graph = model.graph
    if not graph.inputs or not graph.outputs:
        raise ExportError("the graph has no inputs or no outputs; a Paddle program needs both")
    builder = ProgramBuilder(taken=_names(graph))
    form = Emitter if onnx_format else FakeQuantizeEmitter
    emit = form(builder, Quantization(placement, qparams))
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for value in inputs:
        emit.define(value)
        builder.feed(str(value.name))
    for value in inputs:
        emit.round(value)
    for node in graph:
        emit.enter(node)
        write_node(emit)
        emit.leave()
    for value in graph.outputs:
        builder.fetch(emit.fetched(value))
    return builder.finish()


def _names(graph: ir.Graph) -> set[str]:
    """Every value name of the graph: the source's names stay with the source's tensors."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {value.name for value in values if value.name}
