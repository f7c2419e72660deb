"""Convolutions and linear layers with constant weights, and the affine maps per channel that fold into them.

All arithmetic here is float64; what is stored is float32.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.graph.edit import (
    Array,
    add_initializer,
    attribute_float,
    attribute_int,
    attribute_ints,
    attribute_string,
    constant_operand,
    constant_value,
    data_input,
    dims,
    graph_of,
    input_at,
    node_label,
    plain_attributes,
    rank,
    replace_node,
    set_initializer,
    value_name,
)

_log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A Conv, or a Gemm in normal form, with constant parameters.

    weight: [O, I/group, kh, kw] of a Conv, [K, N] of a Gemm. bias: [O] or [N], zeros where the node has none.
    """

    node: ir.Node
    weight: Float64
    bias: Float64

    @property
    def is_conv(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0 if self.is_conv else 1])

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        if not self.is_conv:
            return int(self.weight.shape[0])
        return int(self.weight.shape[1]) * attribute_int(self.node, "group", 1)

    def with_output(self, scale: Float64, shift: Float64) -> tuple[Float64, Float64]:
        """(weight, bias) of scale * layer(x) + shift; both vectors are [O]."""
        return self.weight * self._output_factor(scale), self.bias * scale + shift

    def with_input(self, scale: Float64, shift: Float64) -> tuple[Float64, Float64]:
        """(weight, bias) of layer(scale * x + shift); both vectors are [I]. A shift is exact only without padding."""
        if not self.is_conv:
            return self.weight * scale[:, None], self.bias + shift @ self.weight
        factor, offset = self._per_weight(scale), self._per_weight(shift)
        return self.weight * factor, self.bias + (self.weight * offset).sum(axis=tuple(range(1, self.weight.ndim)))

    def _output_factor(self, scale: Float64) -> Float64:
        return scale.reshape(-1, *[1] * (self.weight.ndim - 1)) if self.is_conv else scale[None, :]

    def _per_weight(self, channels: Float64) -> Float64:
        """A vector over input channels, [I], as [O, I/group, 1, 1]: the group of each output reads its own part."""
        group = attribute_int(self.node, "group", 1)
        rows = np.repeat(channels.reshape(group, -1), self.outputs // group, axis=0)
        return rows.reshape(*rows.shape, *[1] * (self.weight.ndim - 2))

    @property
    def pads(self) -> bool:
        """Whether the layer adds zeros around its input."""
        if not self.is_conv:
            return False
        return attribute_string(self.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(
            attribute_ints(self.node, "pads", [0])
        )


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """y = scale * x + shift with vectors of one length, 1 or the number of channels (axis 1 of x)."""

    data: ir.Value
    scale: Float64
    shift: Float64

    def for_channels(self, count: int) -> tuple[Float64, Float64] | None:
        """Both vectors with `count` elements; None if they don't fit."""
        if self.scale.size not in (1, count):
            return None
        return np.broadcast_to(self.scale, count).copy(), np.broadcast_to(self.shift, count).copy()


def linear_layer(node: ir.Node | None) -> LinearLayer | None:
    """The node as a LinearLayer; None for other operators, computed parameters, and a Gemm not in normal form."""
    if node is None or node.domain != "" or node.op_type not in ("Conv", "Gemm"):
        return None
    weight, bias_value = constant_value(input_at(node, 1)), input_at(node, 2)
    if weight is None:
        _log.debug("%s has computed weights; nothing folds into it", node_label(node))
        return None
    if node.op_type == "Gemm" and not is_normal_gemm(node):
        return None
    count = weight.shape[0 if node.op_type == "Conv" else 1]
    if bias_value is None:
        bias: Array | None = np.zeros(count)
    else:
        bias = constant_value(bias_value)
    if bias is None or bias.shape != (count,):
        _log.debug("%s has a bias that isn't one constant per channel; nothing folds into it", node_label(node))
        return None
    return LinearLayer(node, weight.astype(np.float64), bias.astype(np.float64))


def is_normal_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is x @ B + C plainly: no transposition, alpha = beta = 1."""
    return (
        attribute_int(node, "transA", 0) == 0
        and attribute_int(node, "transB", 0) == 0
        and attribute_float(node, "alpha", 1.0) == 1.0
        and attribute_float(node, "beta", 1.0) == 1.0
    )


def store(layer: LinearLayer, weight: Float64, bias: Float64, result: ir.Value | None = None) -> ir.Node:
    """Gives the layer new parameters; with `result`, the layer computes that value from now on (see replace_node).

    An initializer that other nodes read as well is left to them: the layer gets one of its own.
    """
    node = layer.node
    weight_value = _stored(node, 1, f"{node.name}.weight", weight)
    inputs = [data_input(node), weight_value]
    if input_at(node, 2) is not None or np.any(bias != 0):
        inputs.append(_stored(node, 2, f"{node.name}.bias", bias))
    if result is None and len(inputs) == len(node.inputs):
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        return node
    return replace_node(node, node.op_type, inputs, plain_attributes(node), result=result)


def _stored(node: ir.Node, index: int, name: str, array: Float64) -> ir.Value:
    """Puts the array into the initializer at `index` if only this node reads it, else into a new one."""
    value = input_at(node, index)
    data = array.astype(np.float32)
    if value is None or not value.is_initializer():
        return add_initializer(graph_of(node), name, data)
    if len(list(value.uses())) == 1:
        set_initializer(value, data)
        return value
    return add_initializer(graph_of(node), value_name(value), data)


def channel_affine(node: ir.Node) -> ChannelAffine | None:
    """The node as an affine map per channel: Add, Sub, Mul, Div with a constant, or BatchNormalization. Else None."""
    if node.domain != "":
        return None
    affine = _batch_norm(node) if node.op_type == "BatchNormalization" else _arithmetic(node)
    if affine is None:
        return None
    if not (np.all(np.isfinite(affine.scale)) and np.all(np.isfinite(affine.shift))):
        _log.debug("%s has a constant that is not finite; kept as it is", node_label(node))
        return None
    return affine


def _batch_norm(node: ir.Node) -> ChannelAffine | None:
    """scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale. ONNX BatchNormalization, inference."""
    if attribute_int(node, "training_mode", 0) or any(list(value.uses()) for value in node.outputs[1:]):
        _log.debug("%s is in training mode; kept", node_label(node))
        return None
    arrays = [constant_value(value) for value in node.inputs[1:5]]
    parameters = [array.astype(np.float64) for array in arrays if array is not None]
    if len(parameters) != 4:
        _log.debug("%s has computed parameters; kept", node_label(node))
        return None
    gamma, beta, mean, variance = parameters
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + attribute_float(node, "epsilon", 1e-5))
    return ChannelAffine(data_input(node), scale, beta - mean * scale)


def _arithmetic(node: ir.Node) -> ChannelAffine | None:
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    operand = constant_operand(node)
    if operand is None:
        return None
    data, array = operand
    vector = _channel_vector(array, data)
    if vector is None:
        _log.debug("%s has a constant that varies along more than the channels; kept", node_label(node))
        return None
    constant_first = node.inputs[1] is data
    one, zero = np.ones_like(vector), np.zeros_like(vector)
    if node.op_type == "Add":
        return ChannelAffine(data, one, vector)
    if node.op_type == "Sub":
        return ChannelAffine(data, -one, vector) if constant_first else ChannelAffine(data, one, -vector)
    if node.op_type == "Mul":
        return ChannelAffine(data, vector, zero)
    if constant_first:
        return None
    with np.errstate(divide="ignore"):
        return ChannelAffine(data, 1.0 / vector, zero)


def _channel_vector(array: Array, data: ir.Value) -> Float64 | None:
    """The constant as a vector over axis 1 of `data` (or of one element); None if it broadcasts differently."""
    axes = rank(data)
    if axes is None or array.ndim > axes or array.dtype.kind != "f":
        return None
    if array.size == 1:
        return array.reshape(1).astype(np.float64)
    shape = (*[1] * (axes - array.ndim), *array.shape)
    sizes = dims(data)
    if axes < 2 or sizes is None or shape[1] != array.size or sizes[1] != array.size:
        return None
    return array.reshape(-1).astype(np.float64)
