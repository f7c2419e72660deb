"""A file with quantizers as what it was made of: a float graph, a decision for each tensor, and the scales.

`GraphModule(model, placement=..., qparams=...)` of what `read_quantized` gives computes, number for number, what the
file says. It reads the files that fullquant writes (ONNX with QuantizeLinear and DequantizeLinear; Paddle with
quantize_linear and dequantize_linear) and others of the same form. What a file no longer says: why a tensor was placed,
and the weights before they were rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import taken_names
from fullquant.graph.verify import verify
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.readers.quantized.activations import read_activations
from fullquant.readers.quantized.constants import read_constants
from fullquant.readers.quantized.decisions import decide
from fullquant.readers.quantized.integer_pads import float_pads
from fullquant.readers.quantized.layers import fold_moved_constants, merge_biases
from fullquant.readers.quantized.wide_norms import join_wide_norms

__all__ = ["QuantizedGraph", "integer_nodes", "is_quantized", "refuse_quantized", "split_quantizers"]

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_OPERATOR_FORM = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class QuantizedGraph:
    """model: the float graph, weights and biases dequantized (scale * (q - zero_point)), names of the source.

    placement: a decision for each float tensor. qparams: the grid of each tensor that owns a scale.
    places: {rounded activation: names of the file's values that hold it before and after its rounding}, where
        the file has them: not of the input of a Pad of integers.
    """

    model: ir.Model
    placement: Placement
    qparams: Mapping[str, QParams]
    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def is_quantized(model: ir.Model) -> bool:
    """Whether the graph, as `read_model` gives it, holds quantizers."""
    return any(node.op_type in _QUANTIZERS for node in model.graph)


def integer_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that only a quantized model has: quantizers, and operators on integers (QLinearConv and the like)."""
    return [node for node in model.graph if node.op_type in _QUANTIZERS | _OPERATOR_FORM]


def refuse_quantized(model: ir.Model, path: object) -> None:
    """Raises ModelError for a model that is quantized already; path: the file, for the message."""
    found = integer_nodes(model)
    if found:
        more = "" if len(found) == 1 else f" and {len(found) - 1} more of its kind"
        raise ModelError(
            f"{path}: the model is quantized already: operator {found[0].op_type!r} "
            f"(output {str(found[0].outputs[0].name)!r}){more}; give the float model that it was made from"
        )


def split_quantizers(model: ir.Model) -> QuantizedGraph:
    """The float graph, placement and scales of a graph with QuantizeLinear and DequantizeLinear, as a new model.

    model: as `read_model` gives it. Placement.target is the one that the file names, else one with such grids.
    ModelError, naming the tensor: for a graph without quantizers, for integers that anything but DequantizeLinear, Clip
    and Pad reads, for a tensor that is rounded in two ways, and for grids that the simulation does not have.
    """
    if not is_quantized(model):
        raise ModelError("the model holds no quantizers, it is a float model; quantize it first")
    copy = model.clone()
    float_pads(copy.graph)
    join_wide_norms(copy.graph)
    weights, biases = read_constants(copy.graph)
    activations = read_activations(copy.graph)
    fold_moved_constants(copy.graph, weights)
    merge_biases(copy.graph, activations)
    for name, value in list(copy.graph.initializers.items()):
        if not list(value.uses()):
            copy.graph.initializers.pop(name)
    placement, qparams = decide(copy, weights, biases, activations)
    verify(copy)
    there = taken_names(model.graph)
    places = {name: (read.before, read.after) for name, read in activations.items() if read.after in there}
    return QuantizedGraph(copy, placement, qparams, places)
