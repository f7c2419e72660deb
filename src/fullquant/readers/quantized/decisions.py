"""Decisions and scales of a graph whose quantizers were taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import constant_value, input_at, value_name
from fullquant.numerics.qparams import FloatArray, QParams, QuantSpec
from fullquant.placement.decision import Decision, Placement
from fullquant.readers.quantized.activations import ReadActivation
from fullquant.readers.quantized.grids import on_mantissas, same_grid, with_mantissas

INT32 = QuantSpec(-(2**31) + 1, 2**31 - 1)
TARGET = "fullquant.target"

_LAYERS = ("Conv", "Gemm", "MatMul")
_FUSES = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div"})
_CLAMPS = ("Relu", "Clip")
# Behind Conv and Gemm; targets' tables name them (placement.rules.fused_functions).
_FUSED_FUNCTIONS = ("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "Abs")
_MOVES = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "ReduceMax",
    "Identity", "Split", "Gather", "Expand", "Tile", "Concat", "DepthToSpace", *_CLAMPS,
})  # fmt: skip


def decide(
    model: ir.Model, weights: Mapping[str, QParams], biases: Mapping[str, FloatArray],
    activations: Mapping[str, ReadActivation],
) -> tuple[Placement, dict[str, QParams]]:  # fmt: skip
    """A decision for each float tensor, in order of computation, then for each constant; and the owners' grids."""
    graph = model.graph
    short = with_mantissas((a.grid for a in activations.values()), weights=False)
    grids = {name: on_mantissas(read.grid, short) for name, read in activations.items()}
    owners = _owners(graph, activations, grids)
    decisions: dict[str, Decision] = {}
    for value in _activations(graph):
        name = value_name(value)
        decisions[name] = _activation(value, activations.get(name), grids, owners)
    qparams = {name: grids[name] for name in grids if decisions[name].shares is None}
    short = with_mantissas(weights.values(), weights=True)
    weights = {name: on_mantissas(params, short) for name, params in weights.items()}
    qparams |= {name: params for name, params in weights.items() if name in graph.initializers}
    for node in graph:
        for index, constant in enumerate(node.inputs):
            if constant is not None and constant.const_value is not None and constant.dtype == ir.DataType.FLOAT:
                name = value_name(constant)
                decisions.setdefault(name, _constant(node, index, constant, weights, biases, activations))
    symmetric = all(read.grid.spec.symmetric for read in activations.values())
    target = model.metadata_props.get(TARGET) or ("paddle_lite" if symmetric else "onnxruntime")
    return Placement(target, decisions), qparams


def _activations(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from (v for v in node.outputs if v.name and (v.dtype is None or v.dtype == ir.DataType.FLOAT))


def _activation(
    value: ir.Value, read: ReadActivation | None, grids: Mapping[str, QParams], owners: Mapping[str, str]
) -> Decision:
    name, producer = value_name(value), value.producer()
    if read is not None:
        owner = owners[name]
        reason = "the file rounds it" if owner == name else f"only moves the values of {owner!r} and keeps their scale"
        shares = None if owner == name else owner
        return Decision(name, "activation", grids[name].spec, reason, shares=shares, consumers=read.consumers)
    reader = _fused_reader(value, grids)
    after = "" if reader is None else _end_of_kernel(reader, grids)
    begins = producer is not None and producer.op_type in {*_FUSES, *_CLAMPS, *_FUSED_FUNCTIONS}
    if producer is not None and begins and reader is not None and after in grids:
        reason = f"{producer.op_type} and {reader.op_type} are one kernel: the file rounds once, after the second"
        return Decision(name, "activation", grids[after].spec, reason, shares=owners[after], fused=True)
    return Decision(name, "activation", None, "float in the file")


def _end_of_kernel(reader: ir.Node, grids: Mapping[str, QParams]) -> str:
    """The first rounded tensor from a reader's output on, in the kernel; the last one where none is rounded."""
    value = reader.outputs[0]
    while value_name(value) not in grids and (following := _fused_reader(value, grids)) is not None:
        value = following.outputs[0]
    return value_name(value)


def _fused_reader(value: ir.Value, grids: Mapping[str, QParams]) -> ir.Node | None:
    """What alone reads it, in one kernel: a clamp, the function of a layer, the addition of a constant vector to a
    product, or of a rounded tensor to a convolution."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, producer = uses[0].node, value.producer()
    if node.op_type in _CLAMPS:
        return node
    layer = ("Conv", "Gemm", "Add")  # an Add: what is left of a convolution with a sum
    if node.op_type in _FUSED_FUNCTIONS and producer is not None and producer.op_type in layer:
        return node if producer.op_type != "Add" or _adds_to_convolution(producer, grids) else None
    if node.op_type == "Add" and _is_unrounded_layer(value, grids):
        return node if _adds_to_convolution(node, grids) else None
    is_product = producer is not None and producer.op_type == "MatMul"
    other = input_at(node, 1 - uses[0].idx) if node.op_type == "Add" else None
    array = constant_value(other)
    return node if is_product and array is not None and array.ndim == 1 else None


def _adds_to_convolution(node: ir.Node, grids: Mapping[str, QParams]) -> bool:
    """Whether one operand is what a convolution computes and nothing rounds, the other a rounded tensor."""
    x, y = node.inputs[0], node.inputs[1]
    pairs = ((x, y), (y, x)) if x is not None and y is not None else ()
    return any(_is_unrounded_layer(value, grids) and other.name in grids for value, other in pairs)


def _is_unrounded_layer(value: ir.Value, grids: Mapping[str, QParams]) -> bool:
    """Whether a value comes from a convolution, behind clamps and functions or not, and none of them is rounded."""
    producer = value.producer()
    if producer is None or value.name in grids or len(list(value.uses())) != 1 or value.is_graph_output():
        return False
    inner = producer.inputs[0] if producer.op_type in {*_CLAMPS, *_FUSED_FUNCTIONS} else None
    return producer.op_type == "Conv" or (inner is not None and _is_unrounded_layer(inner, grids))


def _owners(graph: ir.Graph, activations: Mapping[str, ReadActivation], grids: Mapping[str, QParams]) -> dict[str, str]:
    """The first tensor, in order of computation, of every group that operators only move, on one grid."""
    parent = {name: name for name in grids}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph:
        if node.op_type not in _MOVES:
            continue
        tensors = [value_name(v) for v in (*node.inputs, *node.outputs) if v is not None and v.name in grids]
        for first, second in pairwise(tensors):
            if same_grid(grids[first], grids[second]):
                parent[root(second)] = root(first)
    first_of: dict[str, str] = {}
    for value in _activations(graph):
        if value.name in grids:
            first_of.setdefault(root(value_name(value)), value_name(value))
    return {name: first_of[root(name)] for name in grids}


def _constant(
    node: ir.Node, index: int, value: ir.Value, weights: Mapping[str, QParams], biases: Mapping[str, FloatArray],
    activations: Mapping[str, ReadActivation],
) -> Decision:  # fmt: skip
    name, op = value_name(value), node.op_type
    if name in weights:
        what = "weight" if index == 1 and op in _LAYERS else "constant operand"
        return Decision(name, "weight", weights[name].spec, f"{what} of {op}, integers in the file")
    step = _bias_step(node, index, weights, activations)
    if step is not None and _lies_on(value, step):
        how = "int32" if name in biases else "float32 on the int32 grid"
        return Decision(name, "bias", INT32, f"bias of {op}: scale_x * scale_w; {how} in the file")
    return Decision(name, "weight", None, "float in the file")


def _bias_step(
    node: ir.Node, index: int, weights: Mapping[str, QParams], activations: Mapping[str, ReadActivation]
) -> FloatArray | None:
    """scale_x * scale_w, () or (O,), where the input is the bias of a layer that computes in integers."""
    layer: ir.Node | None = node if node.op_type in ("Conv", "Gemm") and index == 2 else None
    if node.op_type == "Add":
        product = input_at(node, 1 - index)
        layer = None if product is None else product.producer()
        layer = layer if layer is not None and layer.op_type == "MatMul" else None
    if layer is None:
        return None
    x, weight = input_at(layer, 0), input_at(layer, 1)
    read = None if x is None else activations.get(value_name(x))
    grid = None if weight is None else weights.get(value_name(weight))
    if read is None or grid is None or (read.consumers is not None and layer.name not in read.consumers):
        return None
    return np.asarray(read.grid.scale * grid.scale, dtype=np.float32)


def _lies_on(value: ir.Value, step: FloatArray) -> bool:
    """Whether the bias is on its int32 grid, so that the simulation, which rounds biases, has the file's.

    Integers beyond 2**24 are not exact in float32, and a step that went through Paddle's abs-max may have lost its last
    bit: four units in the last place are let pass.
    """
    array = constant_value(value)
    if array is None:
        return False
    steps = np.rint(array.astype(np.float64) / step.astype(np.float64))
    error = np.abs(steps * step.astype(np.float64) - array)
    return bool(np.all(np.abs(steps) <= INT32.qmax) and np.all(error <= 4 * np.spacing(np.abs(array))))
