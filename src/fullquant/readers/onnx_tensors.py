"""Tensors of ONNX files: external data, sizes, and element types that become float32 or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from fullquant.errors import ModelError

#: Metadata of a model whose file computes in another floating-point type: "FLOAT16" or "BFLOAT16".
CONVERTED_FROM = "fullquant.converted_from"

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: What opset 20 cannot hold or what is quantized already.
_NARROW = ("FLOAT8", "FLOAT6", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")
_REFUSED = frozenset(kind for kind in ir.DataType if kind.name.startswith(_NARROW))
#: A protobuf message is no larger.
LARGEST = 2**31 - 1
_DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def check_file_size(path: Path) -> None:
    """Raises ModelError for a file that is larger than a protobuf message can be."""
    try:
        size = path.stat().st_size
    except OSError:
        return  # said when it is opened
    if size > LARGEST:
        raise ModelError(
            f"{path}: has {size / 1e9:.1f} GB, and an ONNX file (a protobuf message) holds at most 2 GB; save it again "
            "with its weights beside it: onnx.save_model(model, path, save_as_external_data=True)"
        )


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold tensors of it, those that are there, each once.

    None for a file that is no ONNX model: whoever opens it says so.
    """
    try:
        model = ir.from_proto(onnx.load(path, load_external_data=False))
    except Exception:  # protobuf, onnx and onnx_ir each have types of their own for damaged messages
        return []
    outside = [t for _, t in _tensors(model) if isinstance(t, ir.ExternalTensor)]
    return [file for file in dict.fromkeys(path.parent / t.location for t in outside) if file.is_file()]


def load_tensors(path: Path, model: ir.Model) -> None:
    """Brings all tensors into memory, those of attributes too. External data must lie in the model's folder.

    Raises ModelError where data are missing, cut, outside of the folder, or more than 2 GB in all.
    """
    ir.external_data.set_base_dir(model.graph, path.parent)
    total = sum(tensor.nbytes for _, tensor in _tensors(model))
    if total > LARGEST:
        raise ModelError(
            f"{path}: its weights have {total / 1e9:.1f} GB, and at most 2 GB are read; quantize a smaller model"
        )
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _loaded(path, str(value.name), value.const_value)
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                tensor = _loaded(path, str(node.outputs[0].name), attribute.value)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield str(value.name), value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield str(node.outputs[0].name) if node.outputs else str(node.name), attribute.value


def _loaded(path: Path, name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        _check_location(path, name, tensor)
    try:
        return ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
    except Exception as error:  # whatever a malformed tensor provokes in NumPy or mmap
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{path}: the data of {name!r} cannot be read ({reason}); "
            "the file is damaged or its external data is missing, export it again"
        ) from None


def _check_location(path: Path, name: str, tensor: ir.ExternalTensor) -> None:
    folder = path.parent.resolve()
    target = (folder / tensor.location).resolve()
    if not target.is_relative_to(folder):
        raise ModelError(
            f"{path}: the data of {name!r} lies outside the model's folder ({tensor.location}); "
            "put it beside the model and save the model again"
        )
    if not target.is_file():
        raise ModelError(
            f"{path}: the external data file {tensor.location!r} of {name!r} is missing; put it beside the model"
        )
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if end > target.stat().st_size:
        raise ModelError(
            f"{path}: the data of {name!r} ends at byte {end} of {tensor.location!r}, "
            f"which has {target.stat().st_size}; copy the file again"
        )


def check_element_types(path: Path, model: ir.Model) -> None:
    """Raises ModelError where a tensor has an element type of four or eight bits that is no integer of ONNX 20."""
    graph = model.graph
    found = [(str(v.name), v.dtype) for v in (*graph.inputs, *graph.initializers.values()) if v.dtype in _REFUSED]
    for node in graph:
        found += [(str(v.name), v.dtype) for v in node.outputs if v.dtype in _REFUSED]
        for name in _DTYPE_ATTRIBUTES:
            kind = node.attributes.get(name)
            if kind is not None and kind.type == ir.AttributeType.INT and kind.as_int() in _REFUSED:
                found.append((str(node.outputs[0].name), ir.DataType(kind.as_int())))
    if found:
        name, kind_of = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelError(
            f"{path}: tensor {name!r}{more} is {ir.DataType(kind_of or 0).name}, a type of models that are quantized "
            "already; give the float model that it was made from"
        )


def halves_to_float(model: ir.Model) -> None:
    """float16 and bfloat16 -> float32, in place: weights are the same numbers, arithmetic is no longer rounded to them.

    The metadata say so.
    """
    graph = model.graph
    kinds = {v.dtype for v in (*graph.inputs, *graph.initializers.values()) if v.dtype in _HALVES}
    for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)):
        if value.dtype in _HALVES:
            kinds.add(value.dtype)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in _HALVES:
            value.const_value = _float32(value.const_value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in _HALVES:
                kinds.add(attribute.value.dtype)
                node.attributes[name] = ir.AttrTensor(name, _float32(attribute.value))
            elif name in _DTYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in _HALVES:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    if kinds:
        model.metadata_props[CONVERTED_FROM] = " and ".join(sorted(kind.name for kind in kinds if kind is not None))


def _float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
