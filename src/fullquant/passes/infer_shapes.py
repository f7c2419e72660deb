"""Shapes and dtypes of all values, by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import constant_value

#: Constants up to this size are given to the inference: shapes, axes, paddings. Weights are given by their type alone.
_MAX_ELEMENTS = 1024


def infer_shapes(model: ir.Model) -> int:
    """Fills in and corrects shapes and dtypes of computed values; returns how many values changed.

    What follows from the graph's inputs wins over what the file declared, and a name given in the file ("N") over an
    unknown size. Raises ModelError where shapes contradict each other.
    """
    inferred = _infer(model)
    _check_channels(model, inferred)
    count = 0
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name in inferred:
                count += _update(value, inferred[value.name])
    return count


def _infer(model: ir.Model) -> dict[str, ir.Value]:
    """ONNX's inference on a copy without the declared shapes of computed values and without the weights' contents."""
    graph = model.graph
    proto = onnx.GraphProto(name=graph.name or "graph")
    for value in graph.inputs:
        proto.input.append(ir.serde.serialize_value(value))
    for value in graph.initializers.values():
        array = constant_value(value)
        if array is not None and array.size <= _MAX_ELEMENTS and value.const_value is not None:
            proto.initializer.append(ir.serde.serialize_tensor(value.const_value))
        else:
            proto.input.append(ir.serde.serialize_value(value))
    proto.node.extend(ir.serde.serialize_node(node) for node in graph)
    proto.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.outputs)
    copy = onnx.ModelProto(ir_version=model.ir_version, graph=proto)
    copy.opset_import.extend(onnx.helper.make_opsetid(*item) for item in model.opset_imports.items())
    try:
        result = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the graph's shapes contradict each other: {' '.join(str(error).split())}") from error
    found = [*result.graph.value_info, *result.graph.output]
    return {info.name: ir.from_proto(info) for info in found if info.type.HasField("tensor_type")}


def _check_channels(model: ir.Model, inferred: Mapping[str, ir.Value]) -> None:
    """ONNX's inference does not look whether a convolution's weight fits the channels of what it reads."""
    for node in model.graph:
        x, weight = (*node.inputs, None, None)[:2]
        if node.op_type != "Conv" or x is None or weight is None or weight.shape is None or len(weight.shape) < 2:
            continue
        known = inferred.get(str(x.name), x).shape
        channels = known[1] if known is not None and len(known) > 1 else None
        group = node.attributes.get_int("group", 1)
        wanted = weight.shape[1] * group if isinstance(weight.shape[1], int) else None
        if isinstance(channels, int) and wanted is not None and channels != wanted:
            source = model.metadata_props.get("fullquant.model_file", "the model")
            raise ModelError(
                f"{source}: operator {node.metadata_props.get('fullquant.op_type', node.op_type)!r} "
                f"(output {node.outputs[0].name!r}): its weight {weight.name!r} of shape {list(weight.shape)}, "
                f"{group} groups, reads {wanted} channels, but {x.name!r} has {channels}; the parameters belong to "
                "another model, or the input shape is wrong: export the model again"
            )


def _update(value: ir.Value, inferred: ir.Value) -> bool:
    changed = False
    if inferred.dtype is not None and inferred.dtype != value.dtype:
        value.type = ir.TensorType(inferred.dtype)
        changed = True
    if inferred.shape is None:
        return changed
    old = value.shape
    merged = ir.Shape(
        [
            _merge(old[i] if old is not None and len(old) == len(inferred.shape) else None, dim)
            for i, dim in enumerate(inferred.shape)
        ]
    )
    if old is None or tuple(old.dims) != tuple(merged.dims):
        value.shape = merged
        changed = True
    return changed


def _merge(old: int | ir.SymbolicDim | None, new: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(new, int):
        return new
    return _name(new) or (old if isinstance(old, int) else _name(old))


def _name(dim: ir.SymbolicDim | None) -> str | None:
    """The dimension's name, None for the names ("unk__3") that ONNX's inference invents for sizes it doesn't know."""
    return None if dim is None or dim.value is None or dim.value.startswith("unk__") else dim.value
