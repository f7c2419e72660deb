"""What runtimes require of an ONNX QDQ file: one function per rule.

ONNX Runtime replaces DequantizeLinear, operator, QuantizeLinear by an integer kernel where these hold, and computes in
float, or wrongly, where they do not (onnxruntime/core/optimizer/qdq_transformer/selectors_actions, 008eeb96a1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import attribute_int, attribute_ints, attribute_string
from fullquant.lint.finding import Finding
from fullquant.lint.onnx_graph import (
    axis_of,
    behind_bias,
    bias_of,
    channel_axis,
    content,
    dequantizer_of,
    input_at,
    known,
    largest_products,
    quantizer_behind,
    quantizers,
    reaches_quantizer,
    same,
    stored_weight,
)
from fullquant.placement.rules import Target
from fullquant.placement.target import TARGETS

Rule = Callable[[ir.Graph], Iterator[Finding]]

_LAYERS = ("Conv", "Gemm", "MatMul")
# Kernels read both operands in one type (BinaryReplaceWithQLinear, VariadicReplaceWithQLinear).
_ONE_TYPE = ("Add", "Mul", "Concat")
# Q and DQ around these are dropped only if they are equal (DropQDQNodesRules, SplitQDQRules).
_MOVES = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Split", "Expand", "Gather", "Tile",
})  # fmt: skip
_INT32_MAX = 2**31 - 1
# Products of scales are rounded to float32 by each writer in its own order.
_CLOSE = 1e-5


def lint_onnx(source: str | Path | ir.Model) -> list[Finding]:
    """Findings in an ONNX file or model, each once. Raises ModelError where the file cannot be read."""
    if not isinstance(source, ir.Model):
        try:
            source = ir.load(str(source))
        except Exception as error:
            raise ModelError(f"{source}: cannot be read as ONNX ({type(error).__name__}: {error})") from error
    table = TARGETS.get(source.metadata_props.get("fullquant.target", ""))
    return list(dict.fromkeys(finding for rule in _rules_for(table) for finding in rule(source.graph)))


def _rules_for(table: Target | None) -> Iterator[Rule]:
    """The rules that hold for files of a target; None: of nobody knows which."""
    for rule in RULES.values():
        if table is not None and rule is sums:
            if table.rounds_floats:
                yield partial(sums, target=table)
        elif table is None or rule is not operand_types or table.non_negative is None:
            yield rule


def scale_values(graph: ir.Graph) -> Iterator[Finding]:
    """Scales are constants, finite and above 0."""
    for node in quantizers(graph):
        value = node.inputs[1]
        scale = content(value)
        if scale is None:
            yield _of("scale-constant", value, node, "the scale is computed, not an initializer")
        elif scale.size == 0 or not np.all(np.isfinite(scale)) or not np.all(scale > 0):
            yield _of(
                "scale-value", value, node, f"the scale holds {scale.ravel()[:4].tolist()}: not finite and above 0"
            )


def zero_points(graph: ir.Graph) -> Iterator[Finding]:
    """A zero point has the type of the integers and the shape of the scale; of int8 and int32 constants it is 0."""
    for node in quantizers(graph):
        scale, zero = content(node.inputs[1]), content(input_at(node, 2))
        stored = content(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if zero is None:
            if node.op_type == "QuantizeLinear":
                yield _of("zero-point", node.outputs[0], node, "no zero point: the integers would be uint8")
            continue
        if scale is not None and scale.shape != zero.shape:
            yield _of("zero-point", node.inputs[2], node, f"shape {zero.shape} beside a scale of shape {scale.shape}")
        if stored is not None and zero.dtype != stored.dtype:
            yield _of("zero-point", node.inputs[2], node, f"{zero.dtype} beside integers of {stored.dtype}")
        if stored is not None and stored.dtype in (np.int8, np.int32) and np.any(zero != 0):
            yield _of("zero-point", node.inputs[2], node, f"a constant of {stored.dtype} has a zero point other than 0")


def pairs(graph: ir.Graph) -> Iterator[Finding]:
    """A DequantizeLinear undoes its QuantizeLinear: the same scale, zero point and type."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or content(node.inputs[0]) is not None:
            continue
        maker = quantizer_behind(node)
        if maker is None:
            yield _of("pair", node.inputs[0], node, "its input is neither a constant nor made by QuantizeLinear")
            continue
        for index, what in ((1, "scale"), (2, "zero point")):
            first, second = content(input_at(maker, index)), content(input_at(node, index))
            if (first is None) != (second is None):
                yield _of("pair", node.outputs[0], node, f"{what} on one side only")
            elif first is not None and second is not None and not same(first, second):
                yield _of("pair", node.outputs[0], node, f"another {what} than its QuantizeLinear {maker.name!r}")


def layers(graph: ir.Graph) -> Iterator[Finding]:
    """A layer with integer weights reads an integer activation; else it is computed in float."""
    for node in graph:
        if node.op_type not in _LAYERS or stored_weight(node) is None:
            continue
        data = dequantizer_of(node.inputs[0])
        if data is None:
            yield _of("missing-scale", node.inputs[0], node, "data of a layer with integer weights without a scale")


def sums(graph: ir.Graph, target: Target | None = None) -> Iterator[Finding]:
    """A layer with integer weights writes integers, behind what the kernels of the target compute with it, if any.

    Not asked of files of targets that leave sums in float: those are written for another runtime than an ONNX one
    (`placement.rules.Target.rounds_floats`).
    """
    for node in graph:
        if node.op_type not in _LAYERS or stored_weight(node) is None:
            continue
        output = behind_bias(node).outputs[0]
        written = any(reaches_quantizer(user.node) for user in output.uses()) and not output.is_graph_output()
        if not written and not (target is not None and _is_taken_on(output, target)):
            yield _of("missing-scale", output, node, "output of a layer with integer weights without a scale")


def _is_taken_on(value: ir.Value, target: Target) -> bool:
    """Whether the target's kernel goes on with a sum that is not rounded, and what comes out in the end is."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output():
        return False
    (reader,) = readers
    taken = {*target.fused_functions, *(("Add", "Relu", "Clip") if target.fused_sums else ())}
    if reader.op_type not in taken:
        return False
    behind = reader.outputs[0]
    return any(reaches_quantizer(use.node) for use in behind.uses()) or _is_taken_on(behind, target)


def axes(graph: ir.Graph) -> Iterator[Finding]:
    """Scales of a weight run along its output channels: axis 0 of Conv, of Gemm and MatMul the axis of the columns."""
    for node in graph:
        weight = stored_weight(node) if node.op_type in _LAYERS else None
        if weight is None:
            continue
        dequantizer, integers = weight
        scale = content(dequantizer.inputs[1])
        if scale is None or scale.size == 1:
            continue
        axis, wanted = axis_of(dequantizer, integers.ndim), channel_axis(node, integers.ndim)
        if axis != wanted:
            yield _of(
                "axis", dequantizer.inputs[1], node, f"scales along axis {axis}, output channels are on axis {wanted}"
            )
        elif scale.shape != (integers.shape[axis],):
            found = f"{scale.shape} scales for {integers.shape[axis]} output channels"
            yield _of("scale-shape", dequantizer.inputs[1], node, found)


def operand_types(graph: ir.Graph) -> Iterator[Finding]:
    """The operands of Add, Mul and Concat have one integer type; not asked where a target has two (OpenVINO)."""
    for node in graph:
        if node.op_type not in _ONE_TYPE:
            continue
        types = {
            d.inputs[0].dtype for v in node.inputs if (d := dequantizer_of(v)) is not None and d.inputs[0] is not None
        }
        if len(types - {ir.DataType.INT32}) > 1:
            names = ", ".join(sorted(str(t.name).lower() for t in types if t is not None))
            yield _of("operand-types", node.outputs[0], node, f"operands of {names}: integer kernels take one type")


def biases(graph: ir.Graph) -> Iterator[Finding]:
    """A bias is at scale_x * scale_w, and the sum of it and all products stays inside int32.

    ONNX Runtime issue 11415: a channel whose weights are almost 0 has so small a scale that its bias does not fit.
    """
    for node in graph:
        weight = stored_weight(node) if node.op_type in _LAYERS else None
        data = dequantizer_of(node.inputs[0]) if weight is not None else None
        bias = bias_of(node)
        if weight is None or data is None or bias is None:
            continue
        dequantizer, integers = weight
        product = np.asarray(known(data, 1) * known(dequantizer, 1), dtype=np.float64)
        value, stored, scale = bias
        channels = integers.shape[channel_axis(node, integers.ndim)]
        if stored.size != channels:
            found = f"{stored.size} elements behind {channels} output channels"
            yield _of("bias-length", value, node, found)
            continue
        if product.size not in (1, channels) or np.any(~(product > 0)):
            continue  # found by the rules of scales
        if scale is not None and not np.allclose(scale, product, rtol=_CLOSE, atol=0):
            yield _of("bias-scale", value, node, "its scale is not scale_x * scale_w")
        sums = np.abs(stored.astype(np.float64) if scale is not None else np.rint(stored / product))
        sums = sums + largest_products(node, data, dequantizer, integers)
        if np.any(sums > _INT32_MAX):
            channel = int(np.argmax(sums))
            yield _of(
                "int32-overflow", value, node, f"channel {channel} can reach {sums[channel]:.4g}, int32 ends at 2.147e9"
            )


def same_scales(graph: ir.Graph) -> Iterator[Finding]:
    """Operators that move data have equal scales and zero points around them; else they are computed in float."""
    for node in graph:
        data = dequantizer_of(input_at(node, 0)) if node.op_type in _MOVES else None
        if data is None:
            continue
        for value in node.outputs:
            for user in value.uses():
                if user.node.op_type != "QuantizeLinear":
                    continue
                if not all(same(known(data, index), known(user.node, index)) for index in (1, 2)):
                    yield _of("same-scale", value, node, "another scale or zero point behind it than in front")


def paddings(graph: ir.Graph) -> Iterator[Finding]:
    """Floats with a zero point other than 0 are not padded by an operator that OpenVINO moves into the integers.

    OpenVINO 2026.4.1 then pads with the integer 0, which stands for -scale * zero_point (decision 0019): in a Pad
    along one axis between quantizers, and in an average that counts its padding.
    """
    for node in graph:
        data = dequantizer_of(input_at(node, 0)) if node.op_type in ("Pad", "AveragePool") else None
        if data is None or not np.any(known(data, 2)) or not _pads_floats(node):
            continue
        if any(user.node.op_type == "QuantizeLinear" for user in node.outputs[0].uses()):
            what = f"OpenVINO pads with the integer 0 where 0 is the integer {int(known(data, 2).ravel()[0])}"
            yield _of("padding", node.outputs[0], node, what)


def _pads_floats(node: ir.Node) -> bool:
    if node.op_type == "AveragePool":
        return bool(attribute_int(node, "count_include_pad", 0)) and any(attribute_ints(node, "pads", []))
    pads = content(input_at(node, 1))
    constant = attribute_string(node, "mode", "constant") == "constant"
    return constant and pads is not None and np.count_nonzero(pads.reshape(2, -1).any(axis=0)) == 1


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (scale_values, zero_points, pairs, layers, sums, axes, operand_types, biases, same_scales, paddings)
}


def _of(rule: str, value: ir.Value | None, node: ir.Node, message: str) -> Finding:
    name = str(node.name) if value is None or not value.name else str(value.name)
    return Finding(rule, name, f"{node.op_type} {node.name!r}", message)
