"""Matrix products, softmax, reductions, sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def _transposed(c: OpContext, value: ir.Value) -> ir.Value:
    """The last two axes swapped; a vector stays as it is."""
    rank = c.rank(value)
    if rank < 2:
        return value
    return c.node("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def matmul(c: OpContext) -> ir.Value:
    """MatMul with optional transposes; `alpha` (old form) multiplies the product."""
    x, y = c.input("X"), c.input("Y")
    if c.flag("trans_x", c.flag("transpose_X")):
        x = _transposed(c, x)
    if c.flag("trans_y", c.flag("transpose_Y")):
        y = _transposed(c, y)
    product = c.node("MatMul", x, y)
    alpha = c.number("alpha", 1.0)
    return product if alpha == 1.0 else c.node("Mul", product, c.scalar(alpha, product))


def mul(c: OpContext) -> ir.Value:
    """Product of two tensors seen as matrices: x_num_col_dims and y_num_col_dims axes make the rows."""
    x, y = c.input("X"), c.input("Y")
    x_rows, y_rows = c.integer("x_num_col_dims", 1), c.integer("y_num_col_dims", 1)
    x_rank, y_rank = c.rank(x), c.rank(y)
    if y_rank == 2 and y_rows == 1 and x_rows == x_rank - 1:
        return c.node("MatMul", x, y)
    left = x if x_rank == 2 and x_rows == 1 else c.node("Flatten", x, axis=x_rows)
    right = y if y_rank == 2 and y_rows == 1 else c.node("Flatten", y, axis=y_rows)
    product = c.node("MatMul", left, right)
    if x_rows == 1 and y_rank - y_rows == 1:
        return product
    rows = c.node("Shape", x, start=0, end=x_rows)
    columns = c.node("Shape", y, start=y_rows, end=y_rank)
    return c.node("Reshape", product, c.node("Concat", rows, columns, axis=0))


def addmm(c: OpContext) -> ir.Value:
    """beta * input + alpha * (x @ y)."""
    product, term = c.node("MatMul", c.input("X"), c.input("Y")), c.input("Input")
    alpha, beta = c.number("Alpha", 1.0), c.number("Beta", 1.0)
    if alpha != 1.0:
        product = c.node("Mul", product, c.scalar(alpha, product))
    if beta != 1.0:
        term = c.node("Mul", term, c.scalar(beta, term))
    return c.node("Add", product, term)


def softmax(op_type: str) -> Callable[[OpContext], ir.Value]:
    """Rule of Softmax or LogSoftmax along one axis."""

    def rule(c: OpContext) -> ir.Value:
        return c.node(op_type, c.input("X"), axis=c.integer("axis", -1))

    return rule


def reduce(op_type: str) -> Callable[[OpContext], ir.Value]:
    """Rule of a reduction: over the axes of `dim`, over all with `reduce_all` or without axes."""

    def rule(c: OpContext) -> ir.Value:
        x = c.input("X")
        axes = [] if c.flag("reduce_all") else c.known_integers("dim", "DimTensor", "DimTensorList")
        keep = int(c.flag("keep_dim"))
        wanted = c.dtype("out_dtype")
        if wanted is not None:
            x = c.cast(x, wanted)
        return c.node(op_type, x, c.int64(axes), keepdims=keep) if axes else c.node(op_type, x, keepdims=keep)

    return rule


def arg_max(c: OpContext) -> ir.Value:
    """Index of the largest element along an axis, or in the flattened tensor."""
    x = c.input("X")
    keep = int(c.flag("keepdims"))
    if c.flag("flatten"):
        index = c.node("ArgMax", c.reshape(x, [-1]), axis=0, keepdims=keep)
    else:
        index = c.node("ArgMax", x, axis=c.integer("axis", -1), keepdims=keep)
    return c.cast(index, c.dtype("dtype") or np.dtype(np.int64))


def top_k(c: OpContext) -> Sequence[ir.Value]:
    """The k largest (or smallest) elements along an axis, and their indices."""
    count = c.known_integers("k", "K", "KList")
    return c.nodes(
        "TopK",
        c.input("X"),
        c.int64(count),
        outputs=2,
        axis=c.integer("axis", -1),
        largest=int(c.flag("largest", True)),
        sorted=int(c.flag("sorted", True)),
    )


def gather(c: OpContext) -> ir.Value:
    """Slices along an axis, picked by a 1-D index."""
    x, index = c.input("X"), c.input("Index")
    axis = c.integer("axis", c.integer("dim", 0))
    stored = c.constant("Axis")
    if c.has("Axis"):
        axis = int(c.required_constant("Axis").ravel()[0]) if stored is None else int(stored.ravel()[0])
    dims = c.dims(index)
    if len(dims) == 2 and dims[1] == 1:
        index = c.reshape(index, [-1])
    return c.node("Gather", x, index, axis=axis)


def gather_nd(c: OpContext) -> ir.Value:
    """Slices of the first axis, picked by an index of any shape whose last axis holds the one coordinate."""
    x, index = c.input("X"), c.input("Index")
    dims = c.static_dims(index, *range(c.rank(index)))
    if dims[-1] != 1:
        raise c.unsupported(f"the index names {dims[-1]} axes at a time", "index one axis at a time")
    return c.node("Gather", x, c.reshape(index, dims[:-1]), axis=0)


def einsum(c: OpContext) -> ir.Value:
    """Products and sums by an equation; the passes make matrix products of it."""
    operands = c.inputs("Operands")
    if len(operands) > 2:
        raise c.unsupported(f"einsum of {len(operands)} tensors is not read, of two it is", "multiply them two by two")
    return c.node("Einsum", *operands, equation=c.text("equation").replace(" ", ""))
