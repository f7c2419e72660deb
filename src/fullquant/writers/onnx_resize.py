"""The form of Resize that ONNX Runtime's optimisations understand."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import add_initializer, attribute_ints, dims, graph_of, input_at, ints_constant


def resize_by_factors(graph: ir.Graph) -> None:
    """Resize with sizes of some axes -> with a factor for each axis, in place, where that gives the same sizes.

    ONNX Runtime (seen in 1.32) moves transposes through a Resize as if its sizes had an element for every axis, and
    then refuses the graph. A factor is float32(out / in), as runtimes compute it from the sizes themselves.
    """
    for node in graph:
        axes, before = attribute_ints(node, "axes", []), dims(input_at(node, 0))
        sizes = ints_constant(input_at(node, 3)) if node.op_type == "Resize" else None
        if not axes or before is None or sizes is None:
            continue
        factors = np.ones(len(before), np.float32)
        for axis, size in zip(axes, sizes, strict=True):
            old = before[axis]
            factors[axis] = np.float32(size / old) if isinstance(old, int) else 0
            if not isinstance(old, int) or math.floor(np.float32(old) * factors[axis]) != size:
                break
        else:
            node.replace_input_with(3, None)
            node.replace_input_with(2, add_initializer(graph_of(node), f"{node.name}.factors", factors))
            node.attributes.pop("axes")
