"""Translation of Paddle operators to ONNX operators: `table` has the rows, the other modules the rules."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.readers.graph_builder import GraphBuilder
from fullquant.readers.paddle_ops.context import OpContext
from fullquant.readers.paddle_ops.table import LEGACY, PIR, Number, Operator
from fullquant.readers.program import PaddleOp

__all__ = ["LEGACY", "PIR", "Number", "Operator", "translate"]


def translate(builder: GraphBuilder, op: PaddleOp) -> None:
    """Appends the ONNX nodes of one operator to the graph.

    Raises UnsupportedOperatorError for an operator without a row, or an attribute value that its rule cannot express.
    """
    builder.begin(op)
    context = OpContext(builder, op)
    row = LEGACY.get(op.type)
    if row is None:
        raise context.unsupported("this operator has no translation")
    try:
        result = row.rule(context)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise context.malformed(f"an attribute or an input is not what it should be ({error})") from error
    if result is not None:
        values = [result] if isinstance(result, ir.Value) else list(result)
        names = [name for output in row.outputs for name in op.outputs.get(output, ())]
        if len(names) > len(values):
            raise context.malformed(f"{len(names)} outputs are named, {len(values)} exist")
        for name, value in zip(names, values, strict=False):
            builder.set_value(name, value)
    builder.end()
