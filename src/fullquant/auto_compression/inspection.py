"""What a model file holds, and what would become int8 on a target, operator by operator, without any image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from fullquant.auto_compression.inspected_nodes import (
    FallbackEntry,
    NodeEntry,
    OperatorCount,
    fallback,
    multiply_adds_by_kind,
    node_entries,
    operator_counts,
    shape_of,
)
from fullquant.auto_compression.placed import summary, tensors
from fullquant.errors import ModelError, PlacementError, ReportError
from fullquant.graph.edit import dims
from fullquant.graph.layout import INPUT_LAYOUT, is_channels_last
from fullquant.passes import prepare
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.remove_unused import remove_unused
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place, without_rule
from fullquant.placement.rules import Target
from fullquant.placement.target import find_target
from fullquant.readers import ModelFiles, SourceFormat, read_model
from fullquant.readers.quantized import integer_nodes, split_quantizers
from fullquant.report.record import PlacementSummary, TensorEntry, read_record

#: Of `Inspection`, the document of `fullquant inspect --json`; it grows with every change of a field's meaning.
SCHEMA_VERSION = 1
# Shares of the multiply-adds in int8 kernels, from which on a model suits a target, or suits it in part.
_SUITS, _PARTLY = 0.95, 0.5
# In a Paddle parameter file a scale is a float32 and its zero point an int32.
_SCALE_BYTES = 8
_NAMED = 6

Suits = Literal["yes", "partly", "no", "quantized", "unknown"]


@dataclass(frozen=True)
class TensorShape:
    """An input or output of the model; sizes that are free have a name."""

    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Inspection:
    """Everything that `fullquant inspect --json` prints; docs/inspect.md has each field.

    The graph is that after the passes (BatchNorm folded); of a quantized model, the float graph that it was made of.
    """

    schema_version: int
    model: str
    params: str
    source_format: str
    file_bytes: int
    quantized: bool
    quantized_as: str
    inputs: tuple[TensorShape, ...]
    input_layout: str
    outputs: tuple[TensorShape, ...]
    operators: tuple[OperatorCount, ...]
    parameters: int
    weight_bytes: int
    weight_bytes_int8: int | None
    multiply_adds: int | None
    multiply_adds_by_kind: Mapping[str, int] | None
    int8_share: float | None
    target: str
    placement: PlacementSummary | None
    refusal: str
    fallback: tuple[FallbackEntry, ...]
    nodes: tuple[NodeEntry, ...]
    tensors: tuple[TensorEntry, ...]
    suits: Suits
    verdict: str


@dataclass(frozen=True)
class _Placed:
    """A graph and what becomes of it. without_rule: {node: why} of those that the target cannot place."""

    graph: ir.Model
    placement: Placement | None
    refusal: str = ""
    without_rule: Mapping[str, str] | None = None
    quantized_as: str = ""


def inspect_model(
    path: str | Path,
    target: str = "paddle_lite",
    *,
    image_size: Sequence[int] | None = None,
    options: PlacementOptions | None = None,
    output_name: str | None = None,
) -> Inspection:
    """Reads a model and places it on a target; a quantized one is taken as the file says it is placed.

    image_size: (height, width), for models where they are free. output_name: where the model has several outputs.
    Raises ModelError and ConfigError (unknown target).
    """
    table = find_target(target)
    source = _read(path, image_size, output_name)
    placed = _quantized(source) if integer_nodes(source) else _float(source, table, options or PlacementOptions())
    graph, placement = placed.graph, placed.placement
    nodes = node_entries(graph, placement, table, placed.without_rule or {})
    kinds = multiply_adds_by_kind(graph, nodes)
    properties = source.metadata_props
    found = Inspection(
        schema_version=SCHEMA_VERSION,
        model=properties["fullquant.model_file"],
        params=properties.get("fullquant.params_file", ""),
        source_format=properties["fullquant.source_format"],
        file_bytes=_file_bytes(properties),
        quantized=bool(placed.quantized_as),
        quantized_as=placed.quantized_as,
        inputs=tuple(TensorShape(str(value.name), shape_of(value)) for value in graph.graph.inputs),
        input_layout=_layout(graph),
        outputs=tuple(TensorShape(str(value.name), shape_of(value)) for value in graph.graph.outputs),
        operators=operator_counts(nodes, table),
        parameters=sum(node.parameters for node in nodes),
        weight_bytes=sum(tensor.nbytes for tensor in _constants(graph)),
        weight_bytes_int8=None if placement is None else _int8_bytes(graph, placement),
        multiply_adds=None if kinds is None else sum(kinds.values()),
        multiply_adds_by_kind=kinds,
        int8_share=_share(nodes) if placement is not None else None,
        target=target,
        placement=None if placement is None else summary(placement),
        refusal=placed.refusal,
        fallback=() if placement is None else fallback(nodes),
        nodes=nodes,
        tensors=() if placement is None else tensors(placement, {}),
        suits="unknown",
        verdict="",
    )  # fmt: skip
    suits, verdict = _verdict(found)
    return replace(found, suits=suits, verdict=verdict)


# ---- the graph -----------------------------------------------------------------------------------------------------


def _read(path: str | Path, image_size: Sequence[int] | None, output_name: str | None) -> ir.Model:
    model = read_model(path, output_name=output_name)
    shape = model.graph.inputs[0].shape
    if image_size is None or shape is None or len(shape) != 4:
        return model
    last = is_channels_last(dims(model.graph.inputs[0]))
    channels, sizes = (shape[3], shape[1:3]) if last else (shape[1], shape[2:])
    if tuple(sizes) == tuple(image_size):
        return model
    channels = channels if isinstance(channels, int) else 3
    wanted: Mapping[str, Sequence[int]] = {str(model.graph.inputs[0].name): (-1, channels, *image_size)}
    return read_model(path, None, None, wanted, output_name)


def _float(source: ir.Model, target: Target, options: PlacementOptions) -> _Placed:
    """Placed as `quantize` would; where operators have no rule, with these in float."""
    graph = prepare(source)
    try:
        return _Placed(graph, place(graph, target.name, options))
    except PlacementError as error:
        why = f"{target.name} has no int8 rule: keep it float with not_quant_pattern"
        missing = {str(node.name): why for node in without_rule(graph.graph, target)}
        rest = replace(options, skip_nodes=options.skip_nodes | frozenset(missing))
        return _Placed(graph, place(graph, target.name, rest), str(error), missing)


def _quantized(source: ir.Model) -> _Placed:
    """The float graph and the decisions of a file with quantizers; its own graph where it cannot be read back."""
    remove_unused(source)
    try:
        found = split_quantizers(source)
    except ModelError as error:
        infer_shapes(source)
        return _Placed(source, None, f"its integers cannot be read back: {error}", None, _form(source))
    infer_shapes(found.model)
    return _Placed(found.model, found.placement, "", None, _form(source))


def _form(model: ir.Model) -> str:
    """What kind of quantized file it is, and whose, in a few words."""
    types = {node.metadata_props.get("fullquant.op_type", "") for node in model.graph}
    if model.metadata_props["fullquant.source_format"] == "onnx":
        form = "ONNX QDQ" if "QuantizeLinear" in types else "ONNX with integer operators"
    elif any(kind.startswith("fake_") for kind in types):
        form = "Paddle with fake_quantize operators"
    else:
        form = "Paddle with quantize_linear operators (onnx_format)"
    return form + _maker(model)


def _maker(model: ir.Model) -> str:
    """ ", written by fullquant for paddle_lite" where the file, or the report beside it, says so."""
    target = model.metadata_props.get("fullquant.target")
    if target:
        return f", written by fullquant for {target}"
    path = Path(model.metadata_props["fullquant.model_file"])
    try:
        record = read_record(path.parent / "report.json")
    except ReportError:
        return ""
    ours = any((Path(entry.path).name, entry.bytes) == (path.name, path.stat().st_size) for entry in record.outputs)
    if not ours or record.placement is None:
        return ""
    return f", written by fullquant for {record.placement.target} ({record.kept})"


def _layout(model: ir.Model) -> str:
    """The order of the image's axes in the file: "NCHW", "NHWC" (the graph has them as NCHW), "NHWC kept" (the graph
    too); empty where the input is no image.
    """
    sizes = dims(model.graph.inputs[0])
    if sizes is None or len(sizes) != 4:
        return ""
    return model.metadata_props.get(INPUT_LAYOUT, "NHWC kept" if is_channels_last(sizes) else "NCHW")


# ---- sizes ---------------------------------------------------------------------------------------------------------


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def _int8_bytes(model: ir.Model, placement: Placement) -> int:
    """An estimate of the int8 parameter file.

    1 byte for each element of an int8 weight and 8 for each of its channels' scales; 4 for each element of a bias and
    of what stays float; 8 for each activation that has a scale of its own.
    """
    size = 0
    for name, value in model.graph.initializers.items():
        tensor, decision = value.const_value, placement.get(name)
        if tensor is None:
            continue
        if decision is None or decision.spec is None or decision.kind == "bias":
            size += tensor.nbytes
            continue
        axis = decision.spec.axis
        scales = 1 if axis is None else int(tensor.shape.numpy()[axis])
        size += int(tensor.size) + _SCALE_BYTES * scales
    activations = [d for d in placement if d.kind == "activation" and d.spec is not None and not d.fused]
    return size + _SCALE_BYTES * len(activations)


def _file_bytes(properties: Mapping[str, str]) -> int:
    model, params = properties["fullquant.model_file"], properties.get("fullquant.params_file", "")
    source_format: SourceFormat = properties["fullquant.source_format"]  # type: ignore[assignment]
    return ModelFiles(source_format, Path(model), Path(params) if params else None).size()


# ---- the verdict ---------------------------------------------------------------------------------------------------


def _share(nodes: Sequence[NodeEntry]) -> float | None:
    """The part of the multiply-adds that is computed in integers; None where sizes are free."""
    known = [(node.multiply_adds, node.placed == "int8") for node in nodes if node.multiply_adds is not None]
    whole = sum(number for number, _ in known)
    if len(known) < len(nodes) or whole == 0:
        return None
    return sum(number for number, int8 in known if int8) / whole


def _verdict(found: Inspection) -> tuple[Suits, str]:
    """One line: does the model suit the target?"""
    if found.quantized:
        return "quantized", _quantized_verdict(found)
    computing = sum(node.placed != "none" for node in found.nodes)
    floats = sum(len(group.nodes) for group in found.fallback)
    share = found.int8_share
    percent = "" if share is None else f"{100 * share:.1f}% of the multiply-adds are in int8"
    listed = _listed(found.fallback)
    if found.refusal:
        rest = f"; with them in float, {percent}" if percent else ""
        return (
            "no",
            f"{found.target} cannot take it as it is: no int8 rule for {_listed(found.fallback, 'float')}{rest}",
        )
    if not floats:
        return "yes", f"suits {found.target}: all {computing} operators are computed in int8"
    parts = [text for text in (percent, f"{floats} of {computing} operators are computed in float: {listed}") if text]
    if share is None or share >= _SUITS:
        return ("unknown" if share is None else "yes"), f"{_how(share)} {found.target}: {'; '.join(parts)}"
    return ("partly" if share >= _PARTLY else "no"), f"{_how(share)} {found.target}: {'; '.join(parts)}"


def _how(share: float | None) -> str:
    if share is None:
        return "can be quantized for"
    return "suits" if share >= _SUITS else "suits in part" if share >= _PARTLY else "does not suit"


def _quantized_verdict(found: Inspection) -> str:
    again = "nothing to quantize; for another target take the float model that it was made from"
    if found.placement is None:
        return f"quantized already ({found.quantized_as}), but {found.refusal}"
    floats = found.placement.kept_float.get("activation", 0)
    state = "every activation is int8" if floats == 0 else f"{floats} activations are float"
    return f"quantized already ({found.quantized_as}), {state}: {again}"


def _listed(groups: Sequence[FallbackEntry], placed: str = "") -> str:
    counts: dict[str, int] = {}
    for group in groups:
        if placed in ("", group.placed):
            counts[group.operator] = counts.get(group.operator, 0) + len(group.nodes)
    names = [f"{name} ({count})" for name, count in counts.items()]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
