"""Reductions that are made of other operators: norms, sums of squares."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.graph.edit import data_input, insert_before, plain_attributes, replace_node


def normal_reduction(model: ir.Model) -> int:
    """ReduceL2 -> sqrt(sum(x * x)), ReduceSumSquare -> sum(x * x), ReduceL1 -> sum(|x|); returns how many."""
    count = 0
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in ("ReduceL2", "ReduceSumSquare", "ReduceL1"):
            continue
        x, rest, attributes = data_input(node), list(node.inputs)[1:], plain_attributes(node)
        first = insert_before(node, "Abs", [x], like=x) if node.op_type == "ReduceL1" else None
        summed = first or insert_before(node, "Mul", [x, x], like=x)
        if node.op_type == "ReduceL2":
            total = insert_before(node, "ReduceSum", [summed, *rest], attributes, like=node.outputs[0])
            replace_node(node, "Sqrt", [total])
        else:
            replace_node(node, "ReduceSum", [summed, *rest], attributes)
        count += 1
    return count
