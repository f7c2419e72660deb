"""Attention that Paddle's GPU exports hold as one operator, as the products and the softmax that it stands for."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext


def flash_attention(c: OpContext) -> ir.Value:
    """softmax(q k^T / sqrt(D) + mask) v of [batch, tokens, heads, D] tensors."""
    if not c.flag("is_test") and c.number("dropout", 0.0) != 0.0:
        raise c.unsupported("dropout is in training mode", "export the model in evaluation mode, model.eval()")
    return _attention(c, c.input("q"), c.input("k"), c.input("v"), c.optional("attn_mask"), -1.0)


def memory_efficient_attention(c: OpContext) -> ir.Value:
    """softmax(scale q k^T + bias) v of [batch, tokens, heads, D] tensors; a negative scale stands for 1/sqrt(D)."""
    if not c.flag("is_test") and c.number("dropout_p", 0.0) != 0.0:
        raise c.unsupported("dropout is in training mode", "export the model in evaluation mode, model.eval()")
    if c.has("cu_seqlens_q") or c.has("seqlen_k"):
        raise c.unsupported("sequences of several lengths are not read", "export it with one length for all")
    return _attention(
        c, c.input("query"), c.input("key"), c.input("value"), c.optional("bias"), c.number("scale", -1.0)
    )


def _attention(
    c: OpContext, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None, scale: float
) -> ir.Value:
    if c.flag("causal"):
        raise c.unsupported("causal attention is not read, image classifiers attend to all tokens")
    heads, size = c.static_dims(query, 2, 3)
    if c.static_dims(key, 2) != [heads]:
        raise c.unsupported("keys and values of fewer heads than the queries have are not read")
    scaled = c.node("Mul", query, c.scalar(size**-0.5 if scale < 0 else scale, query))
    rows = c.node("Transpose", scaled, perm=[0, 2, 1, 3])
    scores = c.node("MatMul", rows, c.node("Transpose", key, perm=[0, 2, 3, 1]))
    if mask is not None:
        scores = c.node("Add", scores, mask)
    weights = c.node("Softmax", scores, axis=-1)
    mixed = c.node("MatMul", weights, c.node("Transpose", value, perm=[0, 2, 1, 3]))
    return c.node("Transpose", mixed, perm=[0, 2, 1, 3])
