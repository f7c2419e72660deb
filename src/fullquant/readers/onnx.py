"""Reads ONNX models of any operator set into the canonical one: opset 20, constants as initializers, names kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from fullquant.errors import ModelError, UnsupportedOperatorError
from fullquant.graph.edit import constant_value, input_at
from fullquant.graph.layout import as_declared
from fullquant.readers.graph_builder import IR_VERSION, OPSET
from fullquant.readers.onnx_tensors import check_element_types, check_file_size, halves_to_float, load_tensors
from fullquant.readers.pixels import pixels_to_float
from fullquant.readers.refusals import (
    CONTROL_FLOW,
    OTHER_DOMAIN,
    RANDOM,
    RECURRENT,
    SEQUENCE,
    TRAINING,
    Reason,
    Refused,
    reason_of,
    refusal,
)
from fullquant.readers.signature import check_inputs, choose_output, input_dims
from fullquant.readers.wrong_files import refuse_misnamed

_DOMAINS = ("", "ai.onnx")
# Operators of later sets whose meaning, not only their list of types, differs from opset 20.
_CHANGED_LATER = {"GroupNormalization": 21}


def load_onnx(
    path: Path, input_shape: Mapping[str, Sequence[int]] | None = None, output_name: str | None = None
) -> ir.Model:
    """Reads an `.onnx` file. External data must lie inside the model's folder.

    output_name: the output that is meant, where there are several; what only the others need is left out.
    Floats of 16 bits become float32, which the metadata say (`CONVERTED_FROM`).
    Raises ModelError for a damaged file, more than one input, several outputs of which none is named, element types of
    quantized models, operators outside the ONNX standard, and operator sets that cannot be converted.
    """
    loaded = _load(path)
    _keep_output(path, loaded, output_name)
    model = _standard(path, loaded)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _name_nodes(model)
    _set_input_shape(path, model, input_shape or {})
    _check_validity(path, model)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def _load(path: Path) -> ir.Model:
    """The model with all its tensors in memory."""
    check_file_size(path)
    try:
        proto = onnx.load(path, load_external_data=False)
        opset = _opset(path, proto)
        _check_names_are_text(proto.graph)
        model = ir.from_proto(proto)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except ModelError:
        refuse_misnamed(path)
        raise
    except Exception as error:  # protobuf, onnx and onnx_ir each have types of their own for damaged messages
        refuse_misnamed(path)
        raise ModelError(f"{path}: is not an ONNX model ({_reason(error)}); export it again") from None
    model.opset_imports[""] = opset
    check_element_types(path, model)
    load_tensors(path, model)
    halves_to_float(model)
    return model


def _opset(path: Path, proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in _DOMAINS]
    if not versions or not proto.graph.node:
        raise ModelError(f"{path}: is not an ONNX model (no operator set or no operators); export it again")
    return int(versions[0])


def _check_names_are_text(graph: onnx.GraphProto) -> None:
    """protobuf gives bytes where a name is no UTF-8, which only a damaged file holds."""
    texts = [item.name for items in (graph.initializer, graph.input, graph.output) for item in items]
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"the name {text!r} is no UTF-8 text")


def _standard(path: Path, model: ir.Model) -> ir.Model:
    """The model in opset 20 and without functions."""
    if model.functions:
        common.InlinePass()(model)
    _check_operators(path, model)
    _check_names(path, model)
    version = model.opset_imports[""]
    if version < OPSET:
        model = _upgrade(path, model, version)
    elif version > OPSET:
        _relabel(path, model, version)
    model.ir_version = IR_VERSION
    return model


def _check_names(path: Path, model: ir.Model) -> None:
    """Every variable that is read is an input, a constant, or written by an operator."""
    written = {value.name for value in [*model.graph.inputs, *model.graph.initializers.values()]}
    written |= {value.name for node in model.graph for value in node.outputs}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name and value.name not in written:
                raise ModelError(
                    f"{path}: operator {node.op_type!r} (output {node.outputs[0].name!r}): variable {value.name!r} is "
                    "written by no operator, and it is no constant; the file is damaged, export it again"
                )


def _upgrade(path: Path, model: ir.Model, version: int) -> ir.Model:
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), OPSET)
        return ir.from_proto(converted)
    except Exception as error:  # the converter raises RuntimeError and ConvertError for all it cannot do
        raise ModelError(
            f"{path}: opset {version} cannot be converted to {OPSET} ({_reason(error)}); "
            f"export the model with opset {OPSET}"
        ) from None


def _relabel(path: Path, model: ir.Model, version: int) -> None:
    """Later operator sets mostly add element types: a node that fits the definition of opset 20 keeps its meaning."""
    for node in model.graph:
        changed = _CHANGED_LATER.get(node.op_type, version + 1) <= version
        if changed or (node.domain in _DOMAINS and not _fits(node)):
            raise UnsupportedOperatorError(
                f"{path}: operator {node.op_type!r} (output {node.outputs[0].name!r}) of opset {version} has no equal "
                f"in opset {OPSET}; export the model with opset {OPSET} or older"
            )
    model.opset_imports[""] = OPSET


def _fits(node: ir.Node) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return False
    return len(node.inputs) <= schema.max_input and set(node.attributes) <= set(schema.attributes)


def _keep_output(path: Path, model: ir.Model, wanted: str | None) -> None:
    """Leaves one output; of several outputs or inputs, what it does not depend on goes too."""
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    chosen = choose_output(path, {name: _sizes(value) for name, value in outputs.items()}, wanted)
    images = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(outputs) == 1 and len(images) <= 1:
        return
    for value in [v for v in graph.outputs if v is not outputs[chosen]]:
        graph.outputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    for value in images:
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


def _sizes(value: ir.Value) -> list[int | str] | None:
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else str(size.value or "?") for size in value.shape]


def _check_operators(path: Path, model: ir.Model) -> None:
    refused = [
        Refused(
            node.op_type if node.domain in _DOMAINS else f"{node.domain}::{node.op_type}",
            str(node.outputs[0].name) if node.outputs else "",
            reason,
        )
        for node in model.graph
        if (reason := _refusal_of(node)) is not None
    ]
    if refused:
        raise refusal(path, refused)


def _refusal_of(node: ir.Node) -> Reason | None:
    """Why a node cannot be read; None for operators of the standard, whose rules the targets and the executor have."""
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return CONTROL_FLOW
    if node.domain not in _DOMAINS:
        return reason_of(node.op_type, OTHER_DOMAIN)
    if not onnx.defs.has(node.op_type):
        return OTHER_DOMAIN
    if "Sequence" in node.op_type or node.op_type.startswith("Optional"):
        return SEQUENCE
    if node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
        return RANDOM
    if _is_in_training(node):
        return TRAINING
    return RECURRENT if node.op_type in ("LSTM", "GRU", "RNN") else None


def _is_in_training(node: ir.Node) -> bool:
    """BatchNormalization by the statistics of its batch, Dropout that drops."""
    if node.op_type == "Dropout":
        switch = constant_value(input_at(node, 2))
        return switch is not None and bool(switch.any())
    return node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0


def _check_validity(path: Path, model: ir.Model) -> None:
    """Types and shapes must fit together, and the result must pass ONNX's own checker."""
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred)
    except Exception as error:  # the checker and the inference raise types of several libraries
        raise ModelError(f"{path}: is not a valid ONNX model ({_reason(error)}); export it again") from None


def _name_nodes(model: ir.Model) -> None:
    """Every node gets its operator type as metadata and a unique name; good names of the source stay."""
    given = Counter(node.name for node in model.graph)
    taken = {name for name, count in given.items() if name and count == 1}
    index: Counter[str] = Counter()
    for node in model.graph:
        node.metadata_props["fullquant.op_type"] = node.op_type
        if node.name and given[node.name] == 1:
            continue
        while (name := f"{node.op_type}_{index[node.op_type]}") in taken:
            index[node.op_type] += 1
        taken.add(name)
        node.name = name


def _set_input_shape(path: Path, model: ir.Model, input_shape: Mapping[str, Sequence[int]]) -> None:
    """Gives the input its shape, with "N" for an open batch, and forgets what the file says of other shapes."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    check_inputs(path, list(inputs))
    ((name, value),) = inputs.items()
    if value.dtype == ir.DataType.UINT8:
        pixels_to_float(path, model, value)
    if value.dtype != ir.DataType.FLOAT:
        raise ModelError(
            f"{path}: input {name!r} is {value.dtype}, a float32 image is needed (or uint8 behind which a cast to "
            "float32 stands); export a float32 model"
        )
    if value.shape is None:
        raise ModelError(f"{path}: input {name!r} has no shape; export the model with its input shape")
    declared = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    # Every caller knows images as [N, C, H, W]; Keras has the channels last.
    wanted = {key: as_declared(sizes, declared) for key, sizes in input_shape.items()}
    dims = input_dims(path, name, declared, wanted)
    value.shape = ir.Shape([dim if isinstance(dim, int) else ir.SymbolicDim(dim) for dim in dims])
    for node in model.graph:
        for output in node.outputs:
            output.shape = None


def _reason(error: BaseException) -> str:
    """First line of a foreign error, short."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
