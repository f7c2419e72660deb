"""What a runtime really computes, after its optimisations: which layers are in integers and which in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ExecutedOperator:
    """kind: as the runtime calls it. layer: a convolution or matrix product. integer: it multiplies integers."""

    kind: str
    layer: bool
    integer: bool


@dataclass(frozen=True)
class ExecutedGraph:
    """operators: kind -> how many. integer_layers, float_layers: convolutions and matrix products, by what they use."""

    operators: Mapping[str, int]
    integer_layers: int
    float_layers: int


def executed_graph(operators: Iterable[ExecutedOperator]) -> ExecutedGraph:
    """The operators counted."""
    listed = list(operators)
    layers = [operator for operator in listed if operator.layer]
    integer = sum(operator.integer for operator in layers)
    return ExecutedGraph(Counter(operator.kind for operator in listed), integer, len(layers) - integer)
