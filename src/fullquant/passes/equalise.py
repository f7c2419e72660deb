"""Cross-layer equalisation: weight ranges that one scale per tensor can hold, without changing the function."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import attribute_int, node_label, sole_consumer
from fullquant.passes.linear import Float64, LinearLayer, linear_layer, store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pair:
    first: ir.Node
    second: ir.Node


def equalise(model: ir.Model, max_iterations: int = 40, tolerance: float = 1e-3) -> int:
    """Rescales channels between convolutions that follow each other; returns the number of pairs rescaled.

    For W2 relu(W1 x + b1) and any s_i > 0, channel i of the first layer can be divided and the matching inputs of the
    second multiplied by s_i. With ranges r1_i = max |W1_i|, r2_i = max |W2_:i|, the choice s_i = sqrt(r1_i / r2_i)
    gives both the range sqrt(r1_i r2_i). Chains are swept until no s differs from 1 by more than `tolerance`.
    Source: Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction,
    arXiv:1906.04721, equations 6 to 11.

    Pairs are Conv -> Conv with at most Relu or LeakyRelu between, every tensor on the way read once; depthwise and
    grouped convolutions included. A Clip (ReLU6) between is skipped: its bound would have to differ per channel.
    Expects a model after run_passes. Not part of the pipeline: with weight scales per channel it moves the problem
    into the activations, so whether it helps is measured, not assumed.
    """
    pairs = _pairs(model)
    touched: set[int] = set()
    for _ in range(max_iterations):
        largest = 0.0
        for index, pair in enumerate(pairs):
            moved = _equalise_pair(pair)
            if moved > tolerance:
                touched.add(index)
            largest = max(largest, moved)
        if largest <= tolerance:
            break
    return len(touched)


def _pairs(model: ir.Model) -> list[_Pair]:
    pairs = []
    for node in model.graph:
        if node.op_type != "Conv" or linear_layer(node) is None:
            continue
        second = _following_conv(node)
        if second is not None and linear_layer(second) is not None:
            pairs.append(_Pair(node, second))
    return pairs


def _following_conv(node: ir.Node) -> ir.Node | None:
    """The Conv that reads this one's output through homogeneous activations only."""
    value = node.outputs[0]
    while True:
        consumer = sole_consumer(value)
        if consumer is None or consumer.domain != "":
            return None
        if consumer.op_type == "Conv":
            return consumer if consumer.inputs[0] is value else None
        if consumer.op_type == "Clip":
            _log.debug("%s clips at a fixed bound, which rescaling would move; no equalisation", node_label(consumer))
            return None
        if consumer.op_type not in ("Relu", "LeakyRelu"):
            return None
        value = consumer.outputs[0]


def _equalise_pair(pair: _Pair) -> float:
    """Rescales one pair in place; returns the largest |ln s|."""
    first, second = linear_layer(pair.first), linear_layer(pair.second)
    assert first is not None
    assert second is not None
    ranges_out = np.abs(first.weight).max(axis=tuple(range(1, first.weight.ndim)))
    ranges_in = _input_ranges(second)
    # A channel without weights on one side has no range to give; it stays.
    alive = (ranges_out > 0) & (ranges_in > 0)
    scale = np.ones_like(ranges_out)
    scale[alive] = np.sqrt(ranges_out[alive] / ranges_in[alive])
    moved = float(np.abs(np.log(scale)).max(initial=0.0))
    if moved > 0.0:
        store(first, *first.with_output(1.0 / scale, np.zeros_like(scale)))
        store(second, *second.with_input(scale, np.zeros_like(scale)))
    return moved


def _input_ranges(layer: LinearLayer) -> Float64:
    """max |W| over everything that reads each input channel, [I]."""
    group = attribute_int(layer.node, "group", 1)
    largest = np.abs(layer.weight).max(axis=tuple(range(2, layer.weight.ndim)))
    return np.asarray(largest.reshape(group, -1, largest.shape[1]).max(axis=1).reshape(-1))
