"""What becomes of constants: weights, biases and constant operands -> one Decision each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fullquant.errors import PlacementError
from fullquant.numerics.qparams import QuantSpec
from fullquant.placement.decision import Decision
from fullquant.placement.rules import LAYERS, BiasRule, OperatorRule, Target

INT32 = QuantSpec(-(2**31) + 1, 2**31 - 1)
_REDUCED = (-64, 63)

#: Operators whose constants stay float: none of the targets has an integer kernel that would take them as integers.
_FLOAT_CONSTANTS = {
    "Pow": "base or exponent of Pow: a parameter of the function, not a tensor between operators",
    "ConvTranspose": "weight of ConvTranspose: it is computed in float between int8 tensors, with float weights",
    "Where": "constant that Where chooses: rounded behind it, with the result",
}
#: A number that large among the others is a mask ("minus infinity"), not a value that a grid should reach.
_LARGEST_CHOICE = 1e4

_BIAS_REASONS: dict[BiasRule, str] = {
    "int32": "int32 at scale_x * scale_w",
    "float32": "on the int32 grid of scale_x * scale_w, so that every runtime adds the same number; this one in float",
}


class ConstantPlacer:
    """Decisions for the constants of one graph.

    per_channel: one scale per output channel where the target has that. reduce_range: weights in [-64, 63].
    mantissas: what a scale of a weight may be, see QuantSpec.
    """

    def __init__(self, target: Target, *, per_channel: bool, reduce_range: bool, mantissas: tuple[float, ...]) -> None:
        self.target, self.per_channel = target, per_channel
        low, high = _REDUCED if reduce_range else (target.weight.qmin, target.weight.qmax)
        self.weight = replace(target.weight, qmin=low, qmax=high, mantissas=mantissas)
        self.operand = replace(target.weight, mantissas=mantissas)

    def decisions(self, nodes: Iterable[ir.Node], placed: Collection[str]) -> dict[str, Decision]:
        """One decision per float constant that a node reads. placed: names of the nodes that compute in integers.

        PlacementError where a constant is read in two ways that need different integers.
        """
        found: dict[str, Decision] = {}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
                    continue
                decision = self._decision(node, index, value, str(node.name) in placed)
                known = found.get(decision.tensor)
                if known is not None and (known.kind, known.spec) != (decision.kind, decision.spec):
                    raise PlacementError(
                        f"constant {value.name!r} is read in two different ways, by {node.name!r} among others; "
                        "give each operator its own copy in the exported model"
                    )
                found[decision.tensor] = decision
        return found

    def _decision(self, node: ir.Node, index: int, value: ir.Value, placed: bool) -> Decision:
        name, op = str(value.name), node.op_type
        if not placed or self.target.role(op) not in ("compute", "move"):
            return Decision(
                name, "weight", None, f"constant of {op}, which is not computed in integers or reads it as a bound"
            )
        if self.target.role(op) == "move":
            return Decision(name, "weight", None, f"constant that {op} moves: rounded behind it, with the result")
        if op in ("BatchNormalization", "LayerNormalization", "Resize"):
            return Decision(name, "weight", None, f"parameter inside {op}: not a tensor between operators")
        if op in _FLOAT_CONSTANTS:
            _check_choice(node, value)
            return Decision(name, "weight", None, _FLOAT_CONSTANTS[op])
        if op == "Add" and bias_of_add(node) is value and self._multiplies_in_float():
            return Decision(name, "bias", None, f"bias of a product that {self.target.name} computes in float")
        if (op in ("Conv", "Gemm") and index == 2) or (op == "Add" and bias_of_add(node) is value):
            return Decision(name, "bias", INT32, f"bias of {op}: {_BIAS_REASONS[self.target.bias]}")
        if op in LAYERS:
            axis, how = self._granularity(node, index, value)
            return Decision(name, "weight", replace(self.weight, axis=axis), f"weight of {op}: int8, symmetric, {how}")
        return Decision(name, "weight", self.operand, f"constant operand of {op}: int8, symmetric, per tensor")

    def _multiplies_in_float(self) -> bool:
        """Whether products of tensors have no integer kernel, so that what they read need not have a scale."""
        return not self.target.rounds_floats and self.target.kernel("MatMul") != "int8"

    def _granularity(self, node: ir.Node, index: int, value: ir.Value) -> tuple[int | None, str]:
        """The axis with a scale per index, None for one scale, and that in words."""
        axis = _output_channel_axis(node, index, value)
        if axis is None or not self.per_channel:
            return None, "per tensor"
        if _rule_of_layer(node, self.target).weights == "per_channel":
            return axis, "per output channel"
        return None, f"per tensor, the finest that {self.target.name} has for it"


def _check_choice(node: ir.Node, value: ir.Value) -> None:
    """PlacementError for a Where that writes a mask's number: on a grid that holds it everything else is 0."""
    if node.op_type != "Where" or value.const_value is None:
        return
    largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
    if not largest < _LARGEST_CHOICE:
        raise PlacementError(
            f"node {node.name!r} (Where) writes {largest:g} among other values, and no int8 grid holds both; keep it "
            "float, and what reads it, with QuantAware.not_quant_pattern"
        )


def _rule_of_layer(node: ir.Node, target: Target) -> OperatorRule:
    """The rule of a Conv, Gemm or MatMul. A product with a bias is a Gemm, one without a MatMul, however written."""
    if node.op_type == "Conv":
        return target.rules["Conv"]
    with_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    readers = list(node.outputs[0].uses())
    added = node.op_type == "MatMul" and len(readers) == 1 and adds_bias(readers[0].node)
    return target.rules["Gemm" if with_bias or added else "MatMul"]


def adds_bias(node: ir.Node) -> bool:
    """Whether the node is an Add of a constant vector to a matrix product."""
    return node.op_type == "Add" and bias_of_add(node) is not None


def bias_of_add(node: ir.Node) -> ir.Value | None:
    """The constant vector [N] that an Add puts on the product of a MatMul with constant weights; None otherwise."""
    first, second = node.inputs[0], node.inputs[1]
    for product, bias in ((first, second), (second, first)):
        if product is None or bias is None or bias.const_value is None or len(bias.const_value.shape) != 1:
            continue
        producer = product.producer()
        if producer is not None and producer.op_type == "MatMul" and len(list(product.uses())) == 1:
            weight = producer.inputs[1]
            if weight is not None and weight.const_value is not None:
                return bias
    return None


def layer_bias(node: ir.Node) -> ir.Value | None:
    """The constant bias of a Conv or Gemm, or the one that an Add puts on a MatMul; None where there is none."""
    if node.op_type == "MatMul":
        readers = list(node.outputs[0].uses())
        return bias_of_add(readers[0].node) if len(readers) == 1 and adds_bias(readers[0].node) else None
    bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
    return bias if bias is not None and bias.const_value is not None else None


def _output_channel_axis(node: ir.Node, index: int, value: ir.Value) -> int | None:
    rank = len(value.const_value.shape)  # type: ignore[union-attr]
    if node.op_type == "Conv" and index == 1:
        return 0
    if node.op_type == "Gemm" and index == 1:
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.value else 1
    if node.op_type == "MatMul" and index == 1 and rank == 2:
        return 1
    return None
