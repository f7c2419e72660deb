"""Why a runtime has a layer's output elsewhere: its elements recomputed under one supposition after the other.

Saturation. The int8 kernels of ONNX Runtime, oneDNN and others use vpmaddubsw on a processor without VNNI: two products
of a uint8 activation and an int8 weight are added in 16 bits, cut at 32767 and -32768, and only then added in 32 bits.

    exact     acc = sum_k u_k w_k
    saturated acc = sum_k clip(u_2k w_2k + u_2k+1 w_2k+1, -2**15, 2**15 - 1)

Which products are neighbours is the kernel's business (how it lays out K), so a few orders are tried.

Weights rounded again. Paddle's oneDNN passes make float weights of the integers in the file, and integers of those
with a scale of their own, max|w| / 127 of each channel: where a channel holds +-127 nothing happens, else they change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import attribute_int, attribute_ints, constant_value, input_at, value_name
from fullquant.numerics import affine
from fullquant.numerics.qparams import IntArray, QParams
from fullquant.readers.quantized import QuantizedGraph

Rows = IntArray
Reals = npt.NDArray[np.float64]
_Total = Callable[[Rows, Rows], IntArray]
_LEAST, _MOST = -(2**15), 2**15 - 1
_ELEMENTS = 2000
_ENOUGH = 0.8
_LAYERS = ("Conv", "Gemm", "MatMul")


Cause = Literal["carried", "saturation", "requantized", "both", "unexplained"]


@dataclass(frozen=True)
class LayerEvidence:
    """How elements that a runtime has more than a step elsewhere come out under four suppositions.

    layer: name of its output. checked: how many elements. exact, saturated, requantized, both: the share of them that
    is within a step of the runtime's: computed exactly, with sums of two products cut to 16 bits, with weights that
    the runtime rounds again, and with both. largest_weight: largest |q| of the weights; up to 64, nothing can be cut.
    """

    layer: str
    checked: int
    exact: float
    saturated: float
    requantized: float
    both: float
    largest_weight: int

    @property
    def cause(self) -> Cause:
        """The simplest supposition that explains four fifths of the elements.

        "carried": the layer is computed as the file says, its input differed already.
        """
        known: tuple[tuple[Cause, float], ...] = (
            ("carried", self.exact), ("saturation", self.saturated), ("requantized", self.requantized),
            ("both", self.both),
        )  # fmt: skip
        return next((cause for cause, share in known if share >= _ENOUGH), "unexplained")


@dataclass(frozen=True)
class _Weights:
    """integers [O, K], scale [O]."""

    integers: IntArray
    scale: Reals


@dataclass(frozen=True)
class _Layer:
    """A placed layer with the clamp that follows inside its kernel. bias: [O] in real numbers."""

    node: ir.Node
    source: str
    clamp: tuple[float, float]
    weights: _Weights
    weight_shape: tuple[int, ...]
    bias: Reals

    @property
    def name(self) -> str:
        return value_name(self.node.outputs[0])


def layer_input(graph: QuantizedGraph, tensor: str) -> str | None:
    """The activation that the layer in front of `tensor` reads; None where no such layer makes the tensor."""
    layer = _layer_of(graph, tensor)
    return None if layer is None else layer.source


def layer_evidence(
    graph: QuantizedGraph, tensor: str, source: IntArray, actual: IntArray, expected: IntArray
) -> LayerEvidence | None:
    """Recomputes the elements of a layer's output that a runtime has more than a step elsewhere.

    tensor: the output of the layer, or of the ReLU or Clip in its kernel. source: the integers that the runtime gave
    the layer. actual, expected: of `tensor`, by the runtime and by the simulation. None for what is no such layer.
    """
    layer = _layer_of(graph, tensor)
    elements = np.argwhere(np.abs(actual - expected) > 1)
    if layer is None or not len(elements):
        return None
    chosen = elements[:: max(1, len(elements) // _ELEMENTS)][:_ELEMENTS]
    grid, input_grid = _grid(graph, tensor), _grid(graph, layer.source)
    patches, channels = _patches(layer, source, int(input_grid.zero_point), chosen)
    orders = _orders(layer)

    def share(weights: _Weights, *, cut: bool) -> float:
        totals: list[_Total] = [_exact] if not cut else [partial(_saturated, order=order) for order in orders]
        row, scale = weights.integers[channels], weights.scale[channels]
        return max(
            float(
                np.mean(
                    np.abs(_rounded(layer, grid, input_grid, patches, channels, row, scale, offset, total) - seen) <= 1
                )
            )
            for total in totals
            for offset in _offsets(input_grid, patches)
        )

    seen = actual[tuple(chosen.T)]
    written, again = layer.weights, _requantized(layer.weights)
    return LayerEvidence(
        layer.name, len(chosen), share(written, cut=False), share(written, cut=True), share(again, cut=False),
        share(again, cut=True), int(np.abs(written.integers).max()),
    )  # fmt: skip


def _layer_of(graph: QuantizedGraph, tensor: str) -> _Layer | None:
    producers = {value_name(value): node for node in graph.model.graph for value in node.outputs}
    node, clamp = producers.get(tensor), (-math.inf, math.inf)
    bounds = None if node is None else clip_bounds(node)
    if node is not None and bounds is not None:
        inside = graph.placement.get(value_name(bounds[0]))
        if inside is None or not inside.fused:
            return None
        clamp, node = bounds[1:], producers.get(value_name(bounds[0]))
    if node is None or node.op_type not in _LAYERS:
        return None
    return _described(graph, node, clamp)


def _described(graph: QuantizedGraph, node: ir.Node, clamp: tuple[float, float]) -> _Layer | None:
    source, weight = node.inputs[0], input_at(node, 1)
    array = constant_value(weight)
    params = None if weight is None else graph.qparams.get(value_name(weight))
    placed = None if source is None else graph.placement.get(value_name(source))
    if source is None or array is None or params is None or placed is None or placed.spec is None:
        return None
    integers = affine.quantize(array, params)
    if node.op_type != "Conv" and not attribute_int(node, "transB", 0):
        integers = integers.T
    bias = constant_value(input_at(node, 2)) if len(node.inputs) > 2 else None
    count = len(integers)
    weights = _Weights(integers.reshape(count, -1), np.broadcast_to(params.scale.astype(np.float64), count))
    return _Layer(
        node, value_name(source), clamp, weights, integers.shape,
        np.zeros(count) if bias is None else np.asarray(bias, np.float64).reshape(-1),
    )  # fmt: skip


def _grid(graph: QuantizedGraph, tensor: str) -> QParams:
    return graph.qparams[graph.placement.scale_owner(tensor)]


def _patches(layer: _Layer, source: IntArray, zero: int, elements: IntArray) -> tuple[Rows, IntArray]:
    """(what the layer multiplies for each element [E, K], its output channels [E])."""
    if layer.node.op_type != "Conv":
        return source[tuple(elements[:, :-1].T)], elements[:, -1]
    node, (height, width) = layer.node, layer.weight_shape[2:]
    pads, strides = attribute_ints(node, "pads", [0] * 4), attribute_ints(node, "strides", [1, 1])
    steps, groups = attribute_ints(node, "dilations", [1, 1]), attribute_int(node, "group", 1)
    around = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    padded = np.pad(source, around, constant_values=zero)
    per_group, depth = layer.weight_shape[0] // groups, layer.weight_shape[1]
    rows = []
    for image, channel, y, x in elements:
        first = (channel // per_group) * depth
        top, left = y * strides[0], x * strides[1]
        bottom, right = top + height * steps[0], left + width * steps[1]
        rows.append(padded[image, first : first + depth, top : bottom : steps[0], left : right : steps[1]].reshape(-1))
    return np.stack(rows), elements[:, 1]


def _rounded(
    layer: _Layer, grid: QParams, input_grid: QParams, patches: Rows, channels: IntArray, weights: Rows,
    scale: Reals, offset: int, total: _Total,
) -> IntArray:  # fmt: skip
    """The integers that the sums give. offset: what makes uint8 of the activations."""
    zero = int(input_grid.zero_point) + offset
    sums = total(patches + offset, weights) - zero * weights.sum(axis=1)
    real = sums * float(input_grid.scale) * scale + layer.bias[channels]
    return affine.quantize(np.clip(real, *layer.clamp), grid)


def _requantized(weights: _Weights) -> _Weights:
    """Rounded again, so that the largest of each channel is 127."""
    largest = np.maximum(np.abs(weights.integers).max(axis=1), 1)
    integers = np.rint(weights.integers * (127 / largest)[:, None]).astype(np.int64)
    return _Weights(integers, weights.scale * largest / 127)


def _exact(activations: Rows, weights: Rows) -> IntArray:
    return np.asarray((activations * weights).sum(axis=1), np.int64)


def _offsets(grid: QParams, patches: Rows) -> tuple[int, ...]:
    """What makes uint8 of the integers: 128 for a signed grid; none where nothing is below 0 (oneDNN's choice)."""
    if grid.spec.qmin >= 0:
        return (0,)
    return (128, 0) if patches.min(initial=0) >= 0 else (128,)


def _saturated(activations: Rows, weights: Rows, order: npt.NDArray[np.intp]) -> IntArray:
    """order: [K'] places of the products in the order of the kernel, -1 for a filling of zeros; K' is even."""
    products = np.where(order >= 0, (activations * weights)[:, order], 0)
    return np.asarray(np.clip(products[:, 0::2] + products[:, 1::2], _LEAST, _MOST).sum(axis=1), np.int64)


def _orders(layer: _Layer) -> list[npt.NDArray[np.intp]]:
    """How kernels lay out K: channel by channel, pixel by pixel, and the latter with channels in fours."""
    count = layer.weights.integers.shape[1]
    plain = np.arange(count)
    if layer.node.op_type != "Conv":
        return [_even(plain)]
    depth, *window = layer.weight_shape[1:]
    by_pixel = plain.reshape(depth, -1).T
    filled = np.pad(by_pixel, ((0, 0), (0, -depth % 4)), constant_values=-1)
    known: Mapping[bytes, npt.NDArray[np.intp]] = {
        order.tobytes(): order for order in map(_even, (by_pixel.reshape(-1), plain, filled.reshape(-1)))
    }
    assert len(window) == 2
    return list(known.values())


def _even(order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.append(order, -1) if len(order) % 2 else order
