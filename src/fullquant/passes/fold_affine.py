"""Moving an affine map per channel into the convolution or linear layer before or behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    attribute_int,
    attribute_ints,
    consumers,
    data_input,
    dims,
    node_label,
    producer_of,
    remove_from_chain,
    sole_consumer,
)
from fullquant.passes.linear import ChannelAffine, Float64, LinearLayer, channel_affine, linear_layer, store

_log = logging.getLogger(__name__)


def fold_affine(model: ir.Model, *op_types: str) -> int:
    """Folds every affine map per channel among the given operators, into its producer, else into its consumers.

    One fold can make the next possible, so the graph is swept until nothing changes. Returns the number of folds.
    """
    count = 0
    while True:
        folded = sum(_fold(node) for node in list(model.graph) if node.op_type in op_types)
        if not folded:
            return count
        count += folded


def _fold(node: ir.Node) -> bool:
    affine = channel_affine(node) if node.graph is not None else None
    return affine is not None and (_into_producer(node, affine) or _into_consumers(node, affine))


def _into_producer(node: ir.Node, affine: ChannelAffine) -> bool:
    """scale * (W x + b) + shift = (scale W) x + (scale b + shift): always exact, whatever the padding."""
    producer = producer_of(affine.data)
    layer = linear_layer(producer)
    if layer is None:
        return False
    if sole_consumer(affine.data) is not node:
        _log.debug("%s isn't folded into %s, whose output others read too", node_label(node), node_label(layer.node))
        return False
    vectors = affine.for_channels(layer.outputs)
    if vectors is None:
        return False
    weight, bias = layer.with_output(*vectors)
    store(layer, weight, bias, result=node.outputs[0])
    return True


def _into_consumers(node: ir.Node, affine: ChannelAffine) -> bool:
    """W (scale x + shift) + b = (W scale) x + (W shift + b): all readers must take it; a shift forbids zero padding."""
    result = node.outputs[0]
    if result.is_graph_output() or not list(result.uses()):
        return False
    taken: list[tuple[LinearLayer, Float64, Float64]] = []
    for consumer in consumers(result):
        target = _carry(consumer, result, affine.scale, affine.shift)
        if target is None:
            return False
        taken.append(target)
    if not remove_from_chain(node):
        return False
    for layer, scale, shift in taken:
        store(layer, *layer.with_input(scale, shift))
    return True


def _carry(
    consumer: ir.Node, value: ir.Value, scale: Float64, shift: Float64
) -> tuple[LinearLayer, Float64, Float64] | None:
    """Follows the map through operators that it commutes with, to a layer that can take it: (layer, scale, shift)."""
    while True:
        layer = linear_layer(consumer)
        if layer is not None:
            if consumer.inputs[0] is not value or sum(used is value for used in consumer.inputs) != 1:
                return None
            fitted = ChannelAffine(value, scale, shift).for_channels(layer.inputs)
            if fitted is None or (layer.pads and np.any(fitted[1] != 0)):
                _log.debug("%s pads with zeros or has other channels; no shift folds into it", node_label(consumer))
                return None
            return layer, *fitted
        carried = _COMMUTES.get(consumer.op_type, _never)(consumer, scale, shift)
        value = consumer.outputs[0]
        following = sole_consumer(value)
        if carried is None or following is None:
            return None
        (scale, shift), consumer = carried, following


def _never(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    return None


def _average(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    """An average of true elements commutes with any affine map; padding zeros are moved by a shift."""
    padded = any(attribute_ints(node, "pads", [0])) and attribute_int(node, "count_include_pad", 0)
    return None if padded and np.any(shift != 0) else (scale, shift)


def _maximum(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    return (scale, shift) if np.all(scale > 0) and len(node.outputs) == 1 else None


def _homogeneous(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    """relu(s x) = s relu(x) for s > 0."""
    return (scale, shift) if np.all(scale > 0) and not np.any(shift != 0) else None


def _flatten(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    """[N,C,H,W] -> [N,C*H*W]: each channel's numbers repeat H*W times."""
    if attribute_int(node, "axis", 1) != 1:
        return None
    if scale.size == 1:
        return scale, shift
    sizes = dims(data_input(node))
    pixels = [size for size in (sizes or (None,) * 3)[2:] if isinstance(size, int)]
    if sizes is None or len(pixels) != len(sizes) - 2:
        return None
    return np.repeat(scale, int(np.prod(pixels))), np.repeat(shift, int(np.prod(pixels)))


def _movement(node: ir.Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64] | None:
    """Operators that only move elements commute with a map that is the same for all of them."""
    return (scale, shift) if scale.size == 1 else None


_COMMUTES: dict[str, Callable[[ir.Node, Float64, Float64], tuple[Float64, Float64] | None]] = {
    "GlobalAveragePool": _average,
    "AveragePool": _average,
    "MaxPool": _maximum,
    "GlobalMaxPool": _maximum,
    "Relu": _homogeneous,
    "LeakyRelu": _homogeneous,
    "Flatten": _flatten,
    "Reshape": _movement,
    "Squeeze": _movement,
    "Unsqueeze": _movement,
    "Transpose": _movement,
}
