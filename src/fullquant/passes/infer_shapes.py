"""Shapes and dtypes of all values, by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import constant_value, dims

#: Constants up to this size are given to the inference: shapes, axes, paddings. Weights are given by their type alone.
_MAX_ELEMENTS = 1024
#: Element types whose bytes in NumPy are those in an ONNX tensor.
_PLAIN = frozenset(np.dtype(kind) for kind in ("int64", "int32", "float32", "float64", "bool"))


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


#: Sizes of a value: known, named, or None; None altogether where not even the rank is known.
_Sizes: TypeAlias = tuple[int | str | None, ...] | None


def _infer(model: ir.Model) -> dict[str, tuple[int, _Sizes]]:
    """{value: (element type, sizes)} by ONNX's inference, on a copy without the declared shapes of computed values and
    without the weights' contents.
    """
    graph = model.graph
    proto = onnx.GraphProto(name=graph.name or "graph")
    for value in graph.inputs:
        proto.input.append(ir.serde.serialize_value(value))
    for value in graph.initializers.values():
        _add_constant(proto, value)
    proto.node.extend(ir.serde.serialize_node(node) for node in graph)
    proto.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.outputs)
    copy = onnx.ModelProto(ir_version=model.ir_version, graph=proto)
    copy.opset_import.extend(onnx.helper.make_opsetid(*item) for item in model.opset_imports.items())
    try:
        result = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the graph's shapes contradict each other: {' '.join(str(error).split())}") from error
    found = [*result.graph.value_info, *result.graph.output]
    return {info.name: _sizes(info.type.tensor_type) for info in found if info.type.HasField("tensor_type")}


def _add_constant(proto: onnx.GraphProto, value: ir.Value) -> None:
    """A small constant with its contents, another as an input of its type.

    By hand: a large graph has thousands, and onnx_ir's conversions took most of the time of the passes.
    """
    array, tensor = constant_value(value), value.const_value
    if array is None or tensor is None:
        proto.input.append(ir.serde.serialize_value(value))
    elif array.size > _MAX_ELEMENTS:
        info = proto.input.add(name=value.name)
        info.type.tensor_type.elem_type = int(tensor.dtype)
        for size in array.shape:
            info.type.tensor_type.shape.dim.add(dim_value=size)
    elif array.dtype in _PLAIN:
        proto.initializer.add(name=value.name, data_type=int(tensor.dtype), dims=array.shape, raw_data=array.tobytes())
    else:
        proto.initializer.append(ir.serde.serialize_tensor(tensor))


def _sizes(kind: onnx.TypeProto.Tensor) -> tuple[int, _Sizes]:
    if not kind.HasField("shape"):
        return kind.elem_type, None
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else _name(dim.dim_param) for dim in kind.shape.dim)
    return kind.elem_type, sizes


def _check_channels(model: ir.Model, inferred: Mapping[str, tuple[int, _Sizes]]) -> None:
    """ONNX's inference does not look whether a convolution's weight fits the channels of what it reads."""
    for node in model.graph:
        x, weight = (*node.inputs, None, None)[:2]
        if node.op_type != "Conv" or x is None or weight is None or weight.shape is None or len(weight.shape) < 2:
            continue
        _, known = inferred.get(str(x.name), (0, dims(x)))
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


def _update(value: ir.Value, inferred: tuple[int, _Sizes]) -> bool:
    changed = False
    element, sizes = inferred
    if element and (value.dtype is None or int(value.dtype) != element):
        value.type = ir.TensorType(ir.DataType(element))
        changed = True
    if sizes is None:
        return changed
    old = None if value.shape is None else [size if isinstance(size, int) else size.value for size in value.shape]
    if old is None or len(old) != len(sizes):
        merged = list(sizes)
    else:
        pairs = zip(old, sizes, strict=True)
        merged = [size if size is not None else b if isinstance(b, int) else _name(b) for b, size in pairs]
    if old != merged:
        value.shape = ir.Shape(merged)
        changed = True
    return changed


def _name(symbol: str | None) -> str | None:
    """The dimension's name, None for the names ("unk__3") that ONNX's inference invents for sizes it doesn't know."""
    return None if not symbol or symbol.startswith("unk__") else symbol
