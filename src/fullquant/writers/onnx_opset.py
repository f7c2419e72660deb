"""The lowest ONNX operator set that a graph can be written in, and the header of the file."""

from __future__ import annotations

from importlib import metadata

import onnx
import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.graph.edit import attribute_int, attribute_ints, node_label

#: Per-channel QuantizeLinear and DequantizeLinear exist from here on.
LOWEST = 13
#: What readers and passes produce.
HIGHEST = 20


def finish(model: ir.Model) -> None:
    """Sets operator set, IR version, producer; removes what only fullquant reads. In place.

    The file has the lowest operator set from 13 on in which every node means the same: ONNX Runtime 1.16 stops at 19,
    TensorRT 8 at about 17, and nothing that a quantized classifier needs is newer than HardSwish (14). Operators are
    looked up in ONNX's own schemas, so an operator that needs more gets more.
    """
    for node in model.graph:
        node.metadata_props.clear()
        # A dilation of 1 says nothing, but as an attribute of AveragePool it exists only from 19 on.
        if node.op_type == "AveragePool" and all(d == 1 for d in attribute_ints(node, "dilations", [])):
            node.attributes.pop("dilations", None)
    opset = max((_lowest_for(node) for node in model.graph), default=LOWEST)
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""] = opset
    # The IR version that came with the operator set; 8 has all that the older ones need and ONNX Runtime 1.16 reads 9.
    model.ir_version = 8 if opset <= 18 else 9 if opset == 19 else 10
    model.producer_name, model.producer_version = "fullquant", _version()
    # Paths of the machine that wrote the file help nobody who receives it.
    for key in [key for key in model.metadata_props if key.startswith("fullquant.")]:
        del model.metadata_props[key]


def _version() -> str:
    try:
        return metadata.version("fullquant")
    except metadata.PackageNotFoundError:
        return "unknown"


def _lowest_for(node: ir.Node) -> int:
    if node.domain != "":
        raise ExportError(f"{node_label(node)} is of domain {node.domain!r}; only standard ONNX operators are written")
    for version in range(LOWEST, HIGHEST + 1):
        if version >= _meaning_since(node) and _schema_takes(node, version):
            return version
    raise ExportError(f"{node_label(node)} is no operator of ONNX's operator sets {LOWEST} to {HIGHEST} as it stands")


def _meaning_since(node: ir.Node) -> int:
    """Operator set from which on the node computes what it does in 20, where a schema doesn't show the change."""
    if node.op_type == "AveragePool" and attribute_int(node, "ceil_mode", 0):
        return 19
    return 19 if node.op_type == "Resize" else LOWEST


def _schema_takes(node: ir.Node, version: int) -> bool:
    """Whether the operator exists in that version with the node's inputs, their dtypes, and its attributes."""
    if not onnx.defs.has(node.op_type, version, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, version, "")
    count = len(node.inputs)
    if schema.deprecated or not schema.min_input <= count <= schema.max_input or not schema.inputs:
        return False
    if any(name not in schema.attributes for name in node.attributes):
        return False
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if value is None or value.dtype is None:
            continue
        if f"tensor({_TYPE_NAMES.get(value.dtype.name, value.dtype.name.lower())})" not in formal.types:
            return False
    return True


#: Names of dtypes in schemas where they differ from those of onnx_ir.
_TYPE_NAMES = {"FLOAT": "float", "DOUBLE": "double"}
