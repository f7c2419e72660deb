"""The table of torch rules, and what the rules use to read a node's attributes and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fullquant.errors import UnsupportedOperatorError

Tensor = torch.Tensor
Operation = Callable[..., Any]
Builder = Callable[[ir.Node], Operation]

BUILDERS: dict[str, Builder] = {}


def rule(*op_types: str) -> Callable[[Builder], Builder]:
    """Registers a builder for the operators named."""

    def register(builder: Builder) -> Builder:
        for op_type in op_types:
            BUILDERS[op_type] = builder
        return builder

    return register


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute as a plain Python object, or the default where the node does not have it."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, tuple | list) else value


def constant_input(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """Input `index` as NumPy where it is a constant; None where it is absent. A computed one is an error."""
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    value = node.inputs[index]
    if value is None or value.const_value is None:
        name = None if value is None else value.name
        raise UnsupportedOperatorError(
            f"{node.op_type} (node {node.name!r}) needs a constant for input {name!r}, computed from the image; "
            "give Global.input_shape so that it can be folded"
        )
    return value.const_value.numpy()


def ints_input(node: ir.Node, index: int, attr: str | None = None) -> list[int] | None:
    """A list of integers that is an input in newer opsets and an attribute in older ones."""
    array = constant_input(node, index)
    if array is not None:
        return [int(v) for v in np.atleast_1d(array)]
    found = attribute(node, attr) if attr else None
    return None if found is None else [int(v) for v in found]
