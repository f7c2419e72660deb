"""The form of Resize that ONNX Runtime's optimisations understand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_ints,
    attribute_string,
    dims,
    graph_of,
    input_at,
    ints_constant,
)


def resize_by_factors(graph: ir.Graph) -> None:
    """Resize with sizes of some axes -> with a factor for each axis, in place, where that gives the same sizes.

    ONNX Runtime (seen in 1.32) moves transposes through a Resize as if its sizes had an element for every axis, and
    then refuses the graph. A factor is float32(out / in), as runtimes compute it from the sizes themselves. Where in
    times that lies half-way between two float32 numbers below out (6 to 7), ONNX Runtime's shape inference and its
    kernel disagree about a pixel: the next larger number is written then, and some half-way values are rounded to their
    other side. Nearest neighbours at whole coordinates would be others by it, so there the sizes stay, and optimised
    ONNX Runtime refuses the file.
    """
    for node in graph:
        axes, before = attribute_ints(node, "axes", []), dims(input_at(node, 0))
        sizes = ints_constant(input_at(node, 3)) if node.op_type == "Resize" else None
        if not axes or before is None or sizes is None:
            continue
        factors = np.ones(len(before), np.float32)
        for axis, size in zip(axes, sizes, strict=True):
            old = before[axis]
            if not isinstance(old, int):
                break
            factors[axis] = np.float32(size / old)
            if _falls_short(factors[axis], old, size):
                if attribute_string(node, "mode", "nearest") == "nearest":
                    break
                factors[axis] = np.nextafter(factors[axis], np.float32(np.inf))
            if int(np.float32(old) * factors[axis]) != size:
                break
        else:
            node.replace_input_with(3, None)
            node.replace_input_with(2, add_initializer(graph_of(node), f"{node.name}.factors", factors))
            node.attributes.pop("axes")


def _falls_short(factor: np.float32, old: int, size: int) -> bool:
    """Whether old * factor is below size by half the distance of float32 numbers there, or more."""
    return size - float(factor) * old >= 0.5 * float(size - np.nextafter(np.float32(size), np.float32(0)))
