"""GELU, Mish and Sigmoid are recognised in the forms that exporters write them."""

from __future__ import annotations

import math

import onnx_ir as ir

from fullquant.graph.edit import OP_TYPE, data_input, producer_of, replace_node
from fullquant.passes.polynomial import equals, polynomial

#: Constants are float32, rounded up to three times on the way (Div to Mul, products of two).
_TOLERANCE = 1e-6
#: sqrt(2/pi) and 0.044715 are now and then written with fewer digits, such as 0.7978845608 and 0.79788456.
_TANH_TOLERANCE = 1e-5


def fuse_gelu(model: ir.Model) -> int:
    """x (1 + erf(x / sqrt 2)) / 2 and x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 in any order -> Gelu(x).

    ONNX Gelu, approximate = "none" and "tanh".
    """
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.domain != "" or node.op_type not in ("Erf", "Tanh"):
            continue
        source = _gelu_input(node)
        if source is None:
            continue
        for result in _behind(node.outputs[0]):
            # x t / 2 + x / 2
            if equals(polynomial(result, (source, node.outputs[0])), {(1, 1): 0.5, (1, 0): 0.5}, _TOLERANCE):
                _replace(result, "Gelu", source, {"approximate": "none" if node.op_type == "Erf" else "tanh"})
                count += 1
                break
    return count


def fuse_mish(model: ir.Model) -> int:
    """x tanh(softplus(x)) -> Mish(x), softplus also as log(1 + exp(x))."""
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.domain != "" or node.op_type != "Tanh":
            continue
        source = _softplus_input(data_input(node))
        if source is None:
            continue
        for result in _behind(node.outputs[0]):
            if equals(polynomial(result, (source, node.outputs[0])), {(1, 1): 1.0}, _TOLERANCE):
                _replace(result, "Mish", source, {})
                count += 1
                break
    return count


def fuse_sigmoid(model: ir.Model) -> int:
    """1 / (1 + exp(-x)) -> Sigmoid(x), and x / (1 + exp(-x)) -> x Sigmoid(x), the SiLU. Reciprocal counts as 1 / x."""
    count = 0
    for node in list(model.graph):
        if node.graph is None or node.domain != "" or node.op_type not in ("Div", "Reciprocal"):
            continue
        divisor = node.inputs[-1]
        source = _exponential_input(divisor)
        if source is None:
            continue
        if node.op_type == "Reciprocal" or equals(polynomial(node.inputs[0], (source,)), {(0,): 1.0}, _TOLERANCE):
            _replace(node.outputs[0], "Sigmoid", source, {})
            count += 1
        elif node.inputs[0] is source:
            gate = ir.node("Sigmoid", [source])
            gate.name = f"{node.name}_sigmoid"
            gate.outputs[0].name = f"{node.name}.sigmoid"
            gate.outputs[0].shape, gate.outputs[0].type = source.shape, source.type
            model.graph.insert_before(node, gate)
            replace_node(node, "Mul", [source, gate.outputs[0]]).metadata_props.pop(OP_TYPE, None)
            count += 1
    return count


def _replace(result: ir.Value, op_type: str, source: ir.Value, attributes: dict[str, str]) -> None:
    node = result.producer()
    assert node is not None
    # The source has no one operator for this.
    replace_node(node, op_type, [source], attributes).metadata_props.pop(OP_TYPE, None)


def _behind(value: ir.Value) -> list[ir.Value]:
    """The values that sums and products make of `value`, nearest first, as long as each has one reader."""
    found = []
    while len(list(value.uses())) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        if use.node.op_type not in ("Add", "Sub", "Mul", "Div") or use.node.domain != "":
            break
        value = use.node.outputs[0]
        found.append(value)
    return found


def _gelu_input(node: ir.Node) -> ir.Value | None:
    """x of erf(x / sqrt 2) or of the polynomial under tanh."""
    argument = data_input(node)
    wanted: dict[tuple[int, ...], float] = {(1,): 1 / math.sqrt(2)}
    tolerance = _TOLERANCE
    if node.op_type == "Tanh":
        slope = math.sqrt(2 / math.pi)
        wanted, tolerance = {(1,): slope, (3,): 0.044715 * slope}, _TANH_TOLERANCE
    for source in _sources(argument):
        found = polynomial(argument, (source,))
        if found is not None and equals({k: v for k, v in found.items() if v != 0}, wanted, tolerance):
            return source
    return None


def _sources(value: ir.Value, depth: int = 6) -> list[ir.Value]:
    """The computed values that a chain of sums and products reads, nearest first."""
    node = producer_of(value, "Add", "Sub", "Mul", "Div", "Pow")
    if node is None or depth == 0:
        return []
    found: list[ir.Value] = []
    for operand in node.inputs:
        if operand is not None and operand.const_value is None:
            found += [operand, *_sources(operand, depth - 1)]
    return list(dict.fromkeys(found))


def _softplus_input(value: ir.Value) -> ir.Value | None:
    plain = producer_of(value, "Softplus")
    if plain is not None:
        return plain.inputs[0]
    logarithm = producer_of(value, "Log")
    exponential = None if logarithm is None else _one_plus(logarithm.inputs[0], "Exp")
    return None if exponential is None else exponential.inputs[0]


def _exponential_input(value: ir.Value | None) -> ir.Value | None:
    """x of 1 + exp(-x)."""
    exponential = _one_plus(value, "Exp")
    negated = None if exponential is None else exponential.inputs[0]
    node = producer_of(negated, "Neg", "Mul")
    for source in () if node is None else node.inputs:
        if source is None or source.const_value is not None:
            continue
        if equals(polynomial(negated, (source,)), {(1,): -1.0}, _TOLERANCE):
            return source
    return None


def _one_plus(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of `op_type` whose output plus 1 is the value."""
    add = producer_of(value, "Add")
    for operand in () if add is None else add.inputs:
        node = producer_of(operand, op_type)
        if node is not None and equals(polynomial(value, (node.outputs[0],)), {(1,): 1.0, (0,): 1.0}, _TOLERANCE):
            return node
    return None
