"""What a quantized model means, computed node by node with NumPy: the oracle for the ONNX writer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fullquant.graph.edit import constant_value
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams, symmetric
from fullquant.placement.decision import Placement

Array = npt.NDArray[np.generic]


def evaluate(
    model: ir.Model, feed: Array, placement: Placement | None = None, qparams: Mapping[str, QParams] | None = None
) -> dict[str, Array]:
    """Every tensor's value for the image `feed`; with a placement, as the quantized model computes it."""
    graph = model.graph
    values: dict[str, Array] = {str(graph.inputs[0].name): feed}
    for name, initializer in graph.initializers.items():
        array = constant_value(initializer)
        assert array is not None
        values[name] = array
    quantized: dict[str, Array] = {}
    for name in [str(graph.inputs[0].name), *graph.initializers]:
        _quantize(name, values, quantized, placement, qparams)
    for node in graph:
        evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": model.opset_imports[""]})
        names = [str(value.name) for value in node.inputs if value is not None]
        feeds = {name: _read(node, name, values, quantized, placement, qparams) for name in names}
        for value, result in zip(node.outputs, evaluator.run(None, feeds), strict=True):
            values[str(value.name)] = np.asarray(result)
            _quantize(str(value.name), values, quantized, placement, qparams)
    for value in graph.outputs:
        decision = placement.get(str(value.name)) if placement else None
        if decision is not None and decision.consumers is None and str(value.name) in quantized:
            values[str(value.name)] = quantized[str(value.name)]
    return values


def _quantize(
    name: str,
    values: Mapping[str, Array],
    quantized: dict[str, Array],
    placement: Placement | None,
    qparams: Mapping[str, QParams] | None,
) -> None:
    decision = placement.get(name) if placement else None
    if placement is None or qparams is None or decision is None or decision.spec is None or decision.fused:
        return
    # A bias has the scale of each layer that reads it.
    if decision.kind != "bias":
        quantized[name] = affine.fake_quantize(values[name], qparams[placement.scale_owner(name)])


def _read(
    node: ir.Node,
    name: str,
    values: Mapping[str, Array],
    quantized: Mapping[str, Array],
    placement: Placement | None,
    qparams: Mapping[str, QParams] | None,
) -> Array:
    """What the node reads of a tensor: its value, or its quantized value."""
    decision = placement.get(name) if placement else None
    if placement is None or qparams is None or decision is None:
        return values[name]
    if decision.kind == "bias" and decision.spec is not None:
        return _bias(node, name, values, placement, qparams)
    if name not in quantized:
        return values[name]
    return quantized[name] if decision.consumers is None or node.name in decision.consumers else values[name]


def _bias(
    node: ir.Node, name: str, values: Mapping[str, Array], placement: Placement, qparams: Mapping[str, QParams]
) -> Array:
    """The bias rounded to scale_x * scale_w, where the layer reads an integer input."""
    layer = node
    if node.op_type == "Add":
        layer = next(v.producer() for v in node.inputs if v is not None and v.producer() is not None)  # type: ignore[misc]
    data, weight = (str(value.name) for value in layer.inputs[:2] if value is not None)
    decision = placement[data]
    if decision.spec is None or (decision.consumers is not None and layer.name not in decision.consumers):
        return values[name]
    scale = qparams[placement.scale_owner(data)].scale * qparams[weight].scale
    return np.asarray(np.rint(values[name] / scale.astype(np.float64)) * scale, dtype=np.float32)


def calibrate(model: ir.Model, placement: Placement, feed: Array) -> dict[str, QParams]:
    """Min-max scales of every placed tensor: activations from one batch, weights from themselves."""
    return minmax(placement, evaluate(model, feed))


def minmax(placement: Placement, values: Mapping[str, Array]) -> dict[str, QParams]:
    """Scales that take in the values of every placed tensor."""
    found: dict[str, QParams] = {}
    for decision in placement:
        spec = decision.spec
        if spec is None or decision.kind == "bias" or decision.shares is not None:
            continue
        array = values[decision.tensor].astype(np.float64)
        axes = tuple(axis for axis in range(array.ndim) if axis != spec.axis)
        low, high = np.minimum(array.min(axis=axes), 0.0), np.maximum(array.max(axis=axes), 0.0)
        if spec.symmetric:
            found[decision.tensor] = symmetric(spec, np.maximum(np.maximum(-low, high), 1e-3) / spec.qmax)
        else:
            scale = spec.nearest_scale(np.maximum(high - low, 1e-3) / (spec.qmax - spec.qmin))
            zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax)
            found[decision.tensor] = QParams(spec, np.float32(scale), zero_point.astype(np.int64))
    return found
