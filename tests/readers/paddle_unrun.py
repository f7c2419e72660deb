"""What PaddlePaddle computes on GPUs alone: a program with it, and the same from other operators.

Each case gives (what is saved, what is run). In Paddle 3's form: PaddlePaddle for CPUs makes no legacy program of them.
"""

from __future__ import annotations

from typing import Any

from tests.readers.paddle_layers import parameter


def _heads(x: Any) -> list[Any]:
    """Queries, keys and values: [batch, 12 tokens, 3 heads, 8]."""
    import paddle

    tokens = paddle.transpose(paddle.reshape(x, [-1, 54, 12]), [0, 2, 1])
    projected = paddle.matmul(tokens, parameter((54, 72), -0.3, 0.3))
    return [paddle.reshape(part, [-1, 12, 3, 8]) for part in paddle.split(projected, 3, axis=-1)]


def _as_products(parts: list[Any], mask: Any, scale: float) -> Any:
    import paddle

    q, k, v = (paddle.transpose(part, [0, 2, 1, 3]) for part in parts)
    scores = paddle.matmul(q * scale, k, transpose_y=True)
    if mask is not None:
        scores = scores + mask
    return paddle.transpose(paddle.matmul(paddle.nn.functional.softmax(scores), v), [0, 2, 1, 3])


def flash_attention(masked: bool = False):
    def build(x):
        import paddle

        parts, mask = _heads(x), parameter((1, 3, 12, 12)) if masked else None
        saved = paddle._C_ops.flash_attn(*parts, None, mask, 0.0, False, False, True, "")[0]
        return saved, _as_products(parts, mask, 8**-0.5)

    return build


def memory_efficient_attention(scale: float = -1.0, biased: bool = False):
    def build(x):
        import paddle

        parts, bias = _heads(x), parameter((1, 3, 12, 12)) if biased else None
        rest = (None, None, None, None, -1.0, -1.0, False, 0.0, scale, True)
        saved = paddle._C_ops.memory_efficient_attention(*parts, bias, *rest)[0]
        return saved, _as_products(parts, bias, scale if scale > 0 else 8**-0.5)

    return build


UNRUN = {
    "flash_attn": ((2, 6, 9, 12), flash_attention()),
    "flash_attn_mask": ((2, 6, 9, 12), flash_attention(masked=True)),
    "flash_attn_open": ((-1, 6, 9, 12), flash_attention()),
    "memory_efficient_attention": ((2, 6, 9, 12), memory_efficient_attention()),
    "memory_efficient_attention_scale": ((2, 6, 9, 12), memory_efficient_attention(0.3, biased=True)),
}
