"""A stable text form of a graph, for golden tests and for people."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import Array, dims

#: Initializers with at most this many elements are printed in full.
FULL_ELEMENTS = 8


def to_text(model: ir.Model) -> str:
    """One line per input, node, output and initializer; the same text for the same model on every machine.

    A node's line: `name: output dtype[shape] = Operator(inputs) {attributes}`. Defaults that a node doesn't carry are
    not shown. Large initializers show minimum, maximum and root mean square with four digits, so that differences in
    the last bits, which depend on the processor, don't change the text.
    """
    graph = model.graph
    opsets = ", ".join(f"{domain or 'onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    lines = [f"opset {opsets}"]
    lines += [f"input {_typed(value)}" for value in graph.inputs]
    lines += [_node_line(node) for node in graph]
    lines += [f"output {_typed(value)}" for value in graph.outputs]
    lines += [f"initializer {_typed(value)} {_summary(value)}" for _, value in sorted(graph.initializers.items())]
    return "\n".join(lines) + "\n"


def _typed(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    shape = dims(value)
    sizes = "..." if shape is None else ",".join("?" if dim is None else str(dim) for dim in shape)
    return f"{value.name} {dtype}[{sizes}]"


def _node_line(node: ir.Node) -> str:
    outputs = ", ".join(_typed(value) if value.name else "-" for value in node.outputs)
    inputs = ", ".join("-" if value is None else str(value.name) for value in node.inputs)
    operator = node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
    attributes = " ".join(f"{name}={_attribute(node.attributes[name])}" for name in sorted(node.attributes))
    return f"{node.name}: {outputs} = {operator}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return _array_text(np.asarray(attribute.as_tensor().numpy()))
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return "[" + ",".join(_number(element) for element in attribute.value) + "]"
    return _number(attribute.value)


def _number(element: object) -> str:
    return f"{element:.6g}" if isinstance(element, float) else str(element)


def _summary(value: ir.Value) -> str:
    return "-" if value.const_value is None else _array_text(np.asarray(value.const_value.numpy()))


def _array_text(array: Array) -> str:
    if array.dtype.kind not in "iufb" or array.size == 0:
        return f"({array.size} elements)"
    if array.size <= FULL_ELEMENTS:
        return "[" + ",".join(f"{float(element):.4g}" for element in array.reshape(-1)) + "]"
    numbers = array.astype(np.float64)
    root_mean_square = float(np.sqrt(np.mean(numbers * numbers)))
    return f"(min {numbers.min():.4g}, max {numbers.max():.4g}, rms {root_mean_square:.4g})"
