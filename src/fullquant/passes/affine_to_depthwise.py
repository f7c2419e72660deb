"""An affine map per channel that folds nowhere becomes a depthwise 1x1 convolution."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    OP_TYPE,
    add_initializer,
    dims,
    graph_of,
    node_label,
    producer_of,
    replace_node,
    sole_consumer,
)
from fullquant.passes.linear import ChannelAffine, Float64, channel_affine

_log = logging.getLogger(__name__)


def affine_to_depthwise(model: ir.Model) -> int:
    """A lone BatchNormalization, or Mul with a constant per channel, of an NCHW tensor -> Conv(group=C, 1x1).

    Additions and multiplications beside it are taken along. Why: int8 runtimes have no kernel for a lone normalization,
    and a constant quantized with one scale for all channels loses the small ones, while a depthwise convolution has a
    weight scale per channel and an int32 bias. One number for all channels, and a lone addition, stay as they are.
    """
    count = 0
    for node in list(model.graph):
        if node.graph is not None:
            count += _convert(node)
    return count


def _convert(node: ir.Node) -> bool:
    """Converts the chain of affine nodes that ends at `node`."""
    if _next_affine(node) is not None:
        return False
    last = channel_affine(node)
    sizes = None if last is None else dims(last.data)
    if last is None or sizes is None or len(sizes) != 4 or not isinstance(sizes[1], int):
        return False
    first, chain, scale, shift = _chain(node, last, sizes[1])
    if not any(_is_worth_it(link, sizes[1]) for link in chain):
        _log.debug("%s is one number for all channels or an addition; kept", node_label(node))
        return False
    graph, name = graph_of(node), chain[-1].name
    weight = add_initializer(graph, f"{name}.weight", scale.reshape(-1, 1, 1, 1).astype(np.float32))
    bias = add_initializer(graph, f"{name}.bias", shift.astype(np.float32))
    attributes = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}
    new = replace_node(
        chain[-1], "Conv", [first, weight, bias], {**attributes, "group": sizes[1]}, result=node.outputs[0]
    )
    # No operator of the source did this: the old type would make the convolution count as a normalization.
    new.metadata_props.pop(OP_TYPE, None)
    return True


def _next_affine(node: ir.Node) -> ir.Node | None:
    """The affine node that alone reads this one's output, if any: the chain goes on there."""
    following = sole_consumer(node.outputs[0])
    if following is None:
        return None
    affine = channel_affine(following)
    return following if affine is not None and affine.data is node.outputs[0] else None


def _chain(node: ir.Node, last: ChannelAffine, channels: int) -> tuple[ir.Value, list[ir.Node], Float64, Float64]:
    """(input of the chain, its nodes from the last to the first, scale [C], shift [C]) of the composed map."""
    chain = [node]
    scale, shift = _vectors(last, channels)
    data = last.data
    while True:
        producer = producer_of(data)
        inner = None if producer is None or sole_consumer(data) is None else channel_affine(producer)
        if producer is None or inner is None or dims(inner.data) != dims(data):
            return data, chain, scale, shift
        inner_scale, inner_shift = _vectors(inner, channels)
        # scale * (inner_scale * x + inner_shift) + shift
        shift, scale = scale * inner_shift + shift, scale * inner_scale
        chain.append(producer)
        data = inner.data


def _vectors(affine: ChannelAffine, channels: int) -> tuple[Float64, Float64]:
    return np.broadcast_to(affine.scale, channels).copy(), np.broadcast_to(affine.shift, channels).copy()


def _is_worth_it(node: ir.Node, channels: int) -> bool:
    if node.op_type == "BatchNormalization":
        return True
    affine = channel_affine(node)
    return affine is not None and bool(np.any(affine.scale != 1.0)) and affine.scale.size == channels
