"""A model that scales and then shifts its images: the shift goes first, and the scale into the first convolution."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import add_initializer, consumers, graph_of, node_label, replace_node, sole_consumer
from fullquant.passes.linear import Float64, LinearLayer, channel_affine, linear_layer, store

_log = logging.getLogger(__name__)


def shift_before_scale(model: ir.Model) -> int:
    """image * a, + b, padded convolutions -> image + b / a, and convolutions with the weights W a.

    fold_scale_shift takes both into convolutions without padding. With padding only a scale folds: the zeros around
    a * x + b are the value -b / a around x, another one for each channel. So the shift stays, but no operator does the
    scaling. For images alone: within a network b / a of a channel with a small a could be far beyond the others.

    And for one a for all channels: of several, affine_to_depthwise makes one convolution with the shift as its bias,
    which is no more than the addition that would stay, and runs where constants of additions do not (oneDNN).
    """
    count = 0
    for image in model.graph.inputs:
        for scaling in consumers(image):
            count += _exchange(image, scaling)
    return count


def _exchange(image: ir.Value, scaling: ir.Node) -> bool:
    first = channel_affine(scaling)
    if first is None or first.data is not image or np.any(first.shift != 0):
        return False
    if first.scale[0] == 0 or np.any(first.scale != first.scale[0]):
        return False
    shifting = sole_consumer(scaling.outputs[0])
    second = None if shifting is None else channel_affine(shifting)
    if shifting is None or second is None or second.data is not scaling.outputs[0] or np.any(second.scale != 1):
        return False
    layers = _padded_layers(shifting.outputs[0])
    channels = 0 if not layers else layers[0].inputs
    vectors, shifts = first.for_channels(channels), second.for_channels(channels)
    if not layers or vectors is None or shifts is None:
        return False
    scale, shift = vectors[0], shifts[1]
    constant = _per_channel(shift / scale)
    if not np.all(np.isfinite(constant)):
        _log.debug("%s divides by almost nothing; kept", node_label(scaling))
        return False
    added = add_initializer(graph_of(shifting), f"{shifting.name}.shift", constant)
    replace_node(shifting, "Add", [image, added])
    for layer in layers:
        store(layer, *layer.with_input(scale, np.zeros_like(scale)))
    return True


def _padded_layers(value: ir.Value) -> list[LinearLayer]:
    """All that reads the value, if it is convolutions that take the same channels; none of them padded: nothing."""
    if value.is_graph_output():
        return []
    layers = []
    for reader in consumers(value):
        layer = linear_layer(reader)
        if layer is None or not layer.is_conv or [used is value for used in reader.inputs].count(True) != 1:
            return []
        if reader.inputs[0] is not value:
            return []
        layers.append(layer)
    same = len({layer.inputs for layer in layers}) == 1
    return layers if same and any(layer.pads for layer in layers) else []


def _per_channel(numbers: Float64) -> np.ndarray:
    """One number where all are alike, else [C, 1, 1]: axis 1 of an image [N, C, H, W]."""
    with np.errstate(over="ignore"):
        exact = numbers.astype(np.float32)
    return exact[0].reshape(()) if np.all(exact == exact[0]) else exact.reshape(-1, 1, 1)
