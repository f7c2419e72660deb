"""Layer normalization over many values, as runtimes compute it to float32 precision.

ONNX Runtime (1.32: LayerNormalization, InstanceNormalization) and Paddle Inference (3.3.1: layer_norm, instance_norm)
add all squares in a few long rows of float32 sums. Integers are few and often the same, so these sums are rounded the
same way thousands of times: over 65536 and 131072 values of MobileViTV2 the outputs were off by 1e-5 to 2e-5 of the
largest (PyTorch: 1e-7), up to 2e-3 of a step, which sends values near half-way to the other side. A mean of means of
rows is off by 4e-7 at most, and MobileViTV2_x0_5 4% slower. The file also spares the gain, a float32 for each value,
all of them 1.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fullquant.graph.copying import copied
from fullquant.graph.edit import (
    add_initializer,
    attribute_float,
    attribute_int,
    constant_value,
    data_input,
    dims,
    graph_of,
    input_at,
    insert_before,
    replace_node,
)

#: Up to so many values one sum is exact enough: 1e-6 of the largest output at 8192.
FEW = 4096


def with_split_norms(model: ir.Model) -> ir.Model:
    """The model, or a copy of it with wide normalizations in parts where it has such."""
    if not any(_parts(node) for node in model.graph):
        return model
    copy = copied(model)
    split_wide_norms(copy.graph)
    return copy


def split_wide_norms(graph: ir.Graph) -> int:
    """LayerNormalization(x) over more than FEW values, with gain 1 and no bias, in parts; in place, returns how many.

    r = Reshape(x, [..., a, b]); d = r - mean(mean(r)); d / sqrt(mean(mean(d * d)) + epsilon), reshaped back. Both means
    are along one axis. A number of values that has no divisor near its root is left alone. `readers.quantized` reads
    the parts as LayerNormalization again.
    """
    count = 0
    for node in list(graph):
        parts = _parts(node)
        if parts is not None:
            _split(node, parts)
            count += 1
    return count


def _parts(node: ir.Node) -> tuple[int, int] | None:
    """(a, b) with a * b = number of values, a <= b <= 16 a; None where the node is to be left alone."""
    if node.op_type != "LayerNormalization" or len(node.outputs) != 1:
        return None
    sizes, gain, bias = dims(node.inputs[0]), constant_value(input_at(node, 1)), input_at(node, 2)
    if sizes is None or gain is None or np.any(gain != 1) or bias is not None:
        return None
    inner = [size for size in sizes[_axis(node, len(sizes)) :] if isinstance(size, int)]
    count = math.prod(inner)
    if len(inner) != len(sizes) - _axis(node, len(sizes)) or count <= FEW:
        return None
    rows = next(a for a in range(math.isqrt(count), 0, -1) if count % a == 0)
    return (rows, count // rows) if count <= 16 * rows * rows else None


def _axis(node: ir.Node, rank: int) -> int:
    return attribute_int(node, "axis", -1) % rank


def _split(node: ir.Node, parts: tuple[int, int]) -> None:
    graph, x, name = graph_of(node), data_input(node), str(node.name)
    sizes = dims(x) or ()
    axis = _axis(node, len(sizes))
    outer = [0] * axis  # as they are
    split = add_initializer(graph, f"{name}.rows", np.asarray([*outer, *parts], np.int64))
    back = add_initializer(graph, f"{name}.shape", np.asarray([*outer, *sizes[axis:]], np.int64))
    epsilon = add_initializer(graph, f"{name}.epsilon", np.float32(attribute_float(node, "epsilon", 1e-5)))
    node.name = f"{name}.back"  # who reads x is told by names: the first part has that of the whole
    r = insert_before(node, "Reshape", [x, split], name=name)
    r.shape, r.type = ir.Shape([*sizes[:axis], *parts]), x.type
    d = insert_before(node, "Sub", [r, _mean(node, r, f"{name}.mean")], name=f"{name}.deviation", like=r)
    square = insert_before(node, "Mul", [d, d], name=f"{name}.square", like=r)
    spread = _mean(node, square, f"{name}.variance")
    sum_ = insert_before(node, "Add", [spread, epsilon], name=f"{name}.sum", like=spread)
    root = insert_before(node, "Sqrt", [sum_], name=f"{name}.root", like=spread)
    y = insert_before(node, "Div", [d, root], name=f"{name}.quotient", like=r)
    replace_node(node, "Reshape", [y, back])


def _mean(node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """Over the last axis, then over the last but one; both stay, with size 1."""
    graph, sizes = graph_of(node), list(dims(value) or ())
    for axis in (len(sizes) - 1, len(sizes) - 2):
        axes = add_initializer(graph, f"{name}.axis", np.asarray([axis], np.int64))
        sizes[axis] = 1
        value = insert_before(node, "ReduceMean", [value, axes], {"keepdims": 1}, name=name, like=value)
        value.shape = ir.Shape(sizes)
    return value
