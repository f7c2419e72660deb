"""What the written files must compute: the placed graph, node by node, rounded with numerics.affine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime

from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.placement.decision import Placement

Tensors = dict[str, np.ndarray]


def float_tensors(model: ir.Model, x: np.ndarray) -> Tensors:
    """Every computed tensor of the float graph, by name."""
    return _run(model, x, None, {})


def simulate(model: ir.Model, placement: Placement, qparams: Mapping[str, QParams], x: np.ndarray) -> Tensors:
    """Every computed tensor before its own rounding, and under "<output>@rounded" the graph output after it."""
    return _run(model, x, placement, qparams)


def minmax_qparams(model: ir.Model, placement: Placement, x: np.ndarray) -> dict[str, QParams]:
    """Scales from the largest absolute values: of activations over `x` and those that share, of weights per channel."""
    tensors = {**float_tensors(model, x), str(model.graph.inputs[0].name): x}
    peaks: dict[str, np.ndarray] = {}
    for decision in placement:
        if decision.spec is None or decision.kind == "bias" or decision.fused:
            continue
        if decision.kind == "weight":
            weight = model.graph.initializers[decision.tensor].const_value.numpy()
            axis = decision.spec.axis
            others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
            peak = np.abs(weight).max(axis=others)
        else:
            peak = np.abs(tensors[decision.tensor]).max()
        owner = placement.scale_owner(decision.tensor)
        peaks[owner] = np.maximum(peak, peaks.get(owner, 0.0))
    found: dict[str, QParams] = {}
    for owner, peak in peaks.items():
        spec = placement[owner].spec
        assert spec is not None
        found[owner] = symmetric(spec, np.maximum(peak, 1e-6) / spec.qmax)
    return found


def _run(model: ir.Model, x: np.ndarray, placement: Placement | None, qparams: Mapping[str, QParams]) -> Tensors:
    graph = model.graph
    tensors: Tensors = {str(graph.inputs[0].name): x}
    for node in graph:
        inputs = [None if value is None else _read(value, node, tensors, placement, qparams) for value in node.inputs]
        for value, result in zip(node.outputs, _evaluate(node, inputs, model), strict=True):
            tensors[str(value.name)] = result
    if placement is not None:
        name = str(graph.outputs[0].name)
        tensors[f"{name}@rounded"] = _rounded(name, tensors[name], None, placement, qparams)
    return tensors


def _read(
    value: ir.Value, node: ir.Node, tensors: Tensors, placement: Placement | None, qparams: Mapping[str, QParams]
) -> np.ndarray:
    name = str(value.name)
    array = tensors[name] if value.const_value is None else value.const_value.numpy()
    if placement is None:
        return array
    decision = placement.get(name)
    if decision is not None and decision.spec is not None and decision.kind == "bias":
        product = node
        if node.op_type == "Add":
            product = next(v for v in node.inputs if v is not value).producer()
        x, weight = str(product.inputs[0].name), str(product.inputs[1].name)
        scale = qparams[placement.scale_owner(x)].scale * qparams[weight].scale
        return affine.fake_quantize(array, symmetric(QuantSpec(-(2**31) + 1, 2**31 - 1, axis=0), scale))
    return _rounded(name, array, node.name, placement, qparams)


def _rounded(
    name: str, array: np.ndarray, node: str | None, placement: Placement, qparams: Mapping[str, QParams]
) -> np.ndarray:
    decision = placement.get(name)
    if decision is None or decision.spec is None or decision.fused:
        return array
    if decision.consumers is not None and node not in decision.consumers:
        return array
    return affine.fake_quantize(array, qparams[placement.scale_owner(name)])


def _evaluate(node: ir.Node, inputs: list[np.ndarray | None], model: ir.Model) -> list[np.ndarray]:
    """One node in ONNX Runtime, unoptimised."""
    values = [
        None if array is None else ir.Value(name=f"i{k}", shape=ir.Shape(array.shape), type=ir.TensorType(_type(array)))
        for k, array in enumerate(inputs)
    ]
    copy = ir.Node("", node.op_type, values, list(node.attributes.values()), num_outputs=len(node.outputs), name="n")
    for k, (value, old) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
        value.name, value.type = f"o{k}", old.type or ir.TensorType(ir.DataType.FLOAT)
    present = [value for value in values if value is not None]
    graph = ir.Graph(present, copy.outputs, nodes=[copy], opset_imports=model.graph.opset_imports, name="g")
    proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    feeds = {f"i{k}": array for k, array in enumerate(inputs) if array is not None}
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def _type(array: np.ndarray) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)
