"""What a model file holds, and what would become int8 on a target, tensor by tensor, without any image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from fullquant.auto_compression.reporting import summary, tensors
from fullquant.errors import PlacementError
from fullquant.passes import prepare
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.placement.place import PlacementOptions, place
from fullquant.placement.target import find_target
from fullquant.readers import read_model
from fullquant.report.record import PlacementSummary, TensorEntry

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class TensorShape:
    """An input or output of the model; sizes that are free have a name."""

    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OperatorCount:
    """How many nodes of one operator there are, and how many of them give int8 on the target.

    kernel: what the target computes the operator in, "int8" or "float"; "" where nothing is placed or it has no rule.
    """

    operator: str
    nodes: int
    int8: int
    kernel: str = ""


@dataclass(frozen=True)
class Inspection:
    """quantized: the file holds quantizers already, so there is nothing to place and `placement` is None.

    operators: after the passes (BatchNorm folded); of a quantized model as they are in the file.
    parameters: numbers in weights and biases. multiply_adds: of one image, in convolutions and matrix products; None
    where height and width are free. refusal: why the model cannot be placed on the target, with the remedy.
    """

    model: str
    params: str
    source_format: str
    quantized: bool
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]
    operators: tuple[OperatorCount, ...]
    parameters: int
    multiply_adds: int | None
    target: str
    placement: PlacementSummary | None = None
    refusal: str = ""
    tensors: tuple[TensorEntry, ...] = ()


def inspect_model(
    path: str | Path,
    target: str = "paddle_lite",
    *,
    image_size: Sequence[int] | None = None,
    options: PlacementOptions | None = None,
) -> Inspection:
    """Reads a model and places it on a target.

    image_size: (height, width), for models where they are free. Raises ModelError and ConfigError (unknown target).
    """
    table = find_target(target)
    source = _read(path, image_size)
    quantized = any(node.op_type in _QUANTIZERS for node in source.graph)
    graph = source if quantized else prepare(source)
    if quantized:
        infer_shapes(graph)
    placement: PlacementSummary | None = None
    entries: tuple[TensorEntry, ...] = ()
    refusal, int8 = "", Counter[str]()
    if not quantized:
        try:
            placed = place(graph, target, options)
            placement, entries = summary(placed), tensors(placed, {})
            given = {d.tensor for d in placed if d.spec is not None}
            int8.update(n.op_type for n in graph.graph if n.outputs and str(n.outputs[0].name) in given)
        except PlacementError as error:
            refusal = str(error)
    counts = Counter(node.op_type for node in graph.graph)
    properties = source.metadata_props
    return Inspection(
        model=properties["fullquant.model_file"],
        params=properties.get("fullquant.params_file", ""),
        source_format=properties["fullquant.source_format"],
        quantized=quantized,
        inputs=tuple(_shape(value) for value in graph.graph.inputs),
        outputs=tuple(_shape(value) for value in graph.graph.outputs),
        operators=tuple(
            OperatorCount(name, count, int8[name], "" if placement is None else table.kernel(name) or "")
            for name, count in counts.most_common()
        ),
        parameters=_parameters(graph),
        multiply_adds=_multiply_adds(graph),
        target=target,
        placement=placement,
        refusal=refusal,
        tensors=entries,
    )


def _read(path: str | Path, image_size: Sequence[int] | None) -> ir.Model:
    model = read_model(path)
    shape = model.graph.inputs[0].shape
    if image_size is None or shape is None or len(shape) != 4:
        return model
    channels = shape[1] if isinstance(shape[1], int) else 3
    wanted: Mapping[str, Sequence[int]] = {str(model.graph.inputs[0].name): (-1, channels, *image_size)}
    return read_model(path, input_shape=wanted)


def _shape(value: ir.Value) -> TensorShape:
    sizes = () if value.shape is None else tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    return TensorShape(str(value.name), sizes)


def _parameters(model: ir.Model) -> int:
    """Elements of the constants that are weights or biases; scales, zero points, shapes and axes don't count."""
    settings = {
        str(value.name)
        for node in model.graph if node.op_type in _QUANTIZERS
        for value in node.inputs[1:] if value is not None
    }  # fmt: skip
    total = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        whole_number = tensor is not None and tensor.dtype not in _FLOATS
        stored = any(u.node.op_type == "DequantizeLinear" and u.idx == 0 for u in value.uses())
        if tensor is not None and name not in settings and len(tensor.shape) > 0 and (not whole_number or stored):
            total += _product(tensor.shape) or 0
    return total


def _multiply_adds(model: ir.Model) -> int | None:
    """Of one image: Conv: outputs * C_in / group * kernel; Gemm and MatMul: outputs * K. None: sizes are free."""
    total = 0
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        first, second = node.inputs[0], node.inputs[1]
        outputs = _product(_dims(node.outputs[0])[1:])  # the batch counts once
        inner = _product(_dims(second)[1:] if node.op_type == "Conv" else _dims(first)[-1:])
        if outputs is None or inner is None:
            return None
        total += outputs * inner
    return total


def _dims(value: ir.Value | None) -> list[object]:
    return [None, None] if value is None or value.shape is None else list(value.shape)


def _product(sizes: Iterable[object]) -> int | None:
    """The product of known sizes; None where one is free."""
    result = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        result *= size
    return result
