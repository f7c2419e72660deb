"""Powers that have an operator of their own, whose exponent would otherwise be rounded to a grid."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.graph.edit import data_input, input_at, rank, replace_node, scalar_constant


def normal_power(model: ir.Model) -> int:
    """x ** 2 -> x * x, x ** 0.5 -> sqrt(x); returns the number of powers replaced.

    An exponent on an int8 grid is 2.004, say, and a negative number to the power of that is no number.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Pow" or node.domain != "":
            continue
        exponent, x = scalar_constant(input_at(node, 1)), data_input(node)
        if (rank(input_at(node, 1)) or 0) > (rank(x) or 0):
            continue
        if exponent == 2.0:
            replace_node(node, "Mul", [x, x])
            count += 1
        elif exponent == 0.5:
            replace_node(node, "Sqrt", [x])
            count += 1
    return count
