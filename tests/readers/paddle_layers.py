"""Pieces of small Paddle programs: functions that make a function from one tensor to another.

PaddlePaddle is imported inside them, because it takes its flags at that moment, and because the tests list the cases
where it isn't installed.
"""

from __future__ import annotations

import math


def raw_operator(x, kind, inputs=None, outputs=("Out",), attrs=None, dtype="float32", shape=None):
    """Appends a raw legacy operator; returns its first output."""
    from paddle.base.layer_helper import LayerHelper

    helper = LayerHelper(kind)
    made = {name: [helper.create_variable_for_type_inference(dtype)] for name in outputs}
    helper.append_op(type=kind, inputs=inputs or {"X": [x]}, outputs=made, attrs=attrs or {})
    return made[outputs[0]][0]


def parameter(shape, low=-1.0, high=1.0):
    import paddle

    return paddle.static.create_parameter(
        list(shape), "float32", default_initializer=paddle.nn.initializer.Uniform(low, high)
    )


def conv(**options):
    def build(x):
        import paddle

        groups = options.get("groups", 1)
        weight = parameter((options.pop("channels", 12), 6 // groups, 3, 3))
        return paddle.nn.functional.conv2d(x, weight, **options)

    return build


def pool(kind, **options):
    def build(x):
        import paddle.nn.functional as F

        return (F.avg_pool2d if kind == "avg" else F.max_pool2d)(x, **options)

    return build


def functional(name, **options):
    """A function of paddle.nn.functional or paddle of one tensor."""

    def build(x):
        import paddle

        chosen = getattr(paddle.nn.functional, name, None) or getattr(paddle, name)
        return chosen(x, **options)

    return build


def function(name, *args, **options):
    """A function of paddle of one tensor."""

    def build(x):
        import paddle

        return getattr(paddle, name)(x, *args, **options)

    return build


def with_param(name, shape, *, low=-1.0, high=1.0, swap=False, **options):
    def build(x):
        import paddle

        other = parameter(shape, low, high)
        return getattr(paddle, name)(*((other, x) if swap else (x, other)), **options)

    return build


def batch_norm(x):
    import paddle

    mean, variance = parameter((6,)), parameter((6,), 0.5, 2.0)
    return paddle.nn.functional.batch_norm(
        x, mean, variance, parameter((6,)), parameter((6,)), training=False, epsilon=1e-3
    )


def batch_norm_bare(x):
    """As paddle.nn.BatchNorm2D(weight_attr=False, bias_attr=False) exports it."""
    import paddle

    mean, variance = parameter((6,)), parameter((6,), 0.5, 2.0)
    return paddle.nn.functional.batch_norm(x, mean, variance, training=False, epsilon=1e-3)


def layer_norm(axes, **options):
    def build(x):
        import paddle

        shape = [int(size) for size in x.shape[-axes:]]
        weight, bias = parameter((math.prod(shape),)), parameter((math.prod(shape),))
        return paddle.nn.functional.layer_norm(x, shape, weight, bias, **options)

    return build


def prelu(count):
    def build(x):
        import paddle

        return paddle.nn.functional.prelu(x, parameter((count,), 0.1, 0.5))

    return build


def computed_reshape(x):
    import paddle

    size = paddle.shape(x)
    return paddle.reshape(x, [size[0], 6, -1])


def computed_flatten(x):
    import paddle

    size = paddle.shape(x)[0]
    return paddle.reshape(x, paddle.stack([size, paddle.full([], 648, size.dtype)]))


def computed_slice(x):
    import paddle

    return paddle.slice(x, [2, 3], [1, 0], [paddle.shape(x)[2], 5])


def expand_class_token(x):
    import paddle

    token = parameter((1, 1, 9, 12))
    return paddle.concat([paddle.expand(token, [paddle.shape(x)[0], -1, -1, -1]), x], axis=1)


def split_uneven(x):
    import paddle

    first, second, third = paddle.split(x, [2, 3, -1], axis=1)
    return paddle.concat([third, first * 2.0, second], axis=1)


def split_equal(x):
    import paddle

    first, second = paddle.split(x, 2, axis=-1)
    return first - second


def channel_shuffle(x):
    import paddle

    groups = paddle.reshape(x, [-1, 2, 3, 9, 12])
    return paddle.reshape(paddle.transpose(groups, [0, 2, 1, 3, 4]), [-1, 6, 9, 12])


def stack(x):
    import paddle

    return paddle.stack([x, x * 2.0, x + 1.0], axis=-2)


def unbind(x):
    import paddle

    parts = paddle.unbind(x, axis=1)
    return parts[0] * parts[5]


def index(x):
    return x[:, 1:5:2, -3:, 2]


def gather_nd(x):
    """Rows of a table picked as a relative position bias is, added to the image."""
    import paddle

    table = parameter((5, 12))
    return x + paddle.gather_nd(table, paddle.assign(index_array().astype("int64").reshape([-1, 1])[:1]))


def gather(x):
    import paddle

    return paddle.gather(x, paddle.assign(index_array()), axis=1)


def index_array():
    import numpy as np

    return np.array([4, 0, 2], dtype=np.int64)


def index_select(x):
    import paddle

    return paddle.index_select(x, paddle.assign(index_array()), axis=3)


def topk(x):
    import paddle

    values, indices = paddle.topk(x, 3, axis=2, largest=False)
    return values + paddle.cast(indices, "float32")


def argmax(**options):
    def build(x):
        import paddle

        return paddle.cast(paddle.argmax(x, **options), "float32")

    return build


def dropout(mode):
    def build(x):
        import paddle

        return paddle.nn.functional.dropout(x, 0.3, training=False, mode=mode) + 0.0

    return build


def interpolate(**options):
    def build(x):
        import paddle

        return paddle.nn.functional.interpolate(x, **options)

    return build


def pad(*args, **options):
    def build(x):
        import paddle

        return paddle.nn.functional.pad(x, *args, **options)

    return build


def constant_tensors(x):
    import numpy as np
    import paddle

    numbers = paddle.assign(np.arange(12, dtype=np.float32) - 3.0)
    return x * paddle.full([1, 6, 1, 1], 0.25) + numbers


def like(x):
    import paddle

    return paddle.full_like(x, 3.0) - paddle.zeros_like(x) + x


def einsum(equation, *shapes):
    def build(x):
        import paddle

        return paddle.einsum(equation, *([x, *map(parameter, shapes)] if shapes else [x, x * x]))

    return build


def attention(x):
    import paddle

    tokens = paddle.transpose(paddle.flatten(x, 2), [0, 2, 1])
    linear = paddle.nn.Linear(6, 18)
    query, key, value = paddle.split(linear(tokens), 3, axis=-1)
    scores = paddle.nn.functional.softmax(paddle.matmul(query, key, transpose_y=True) * 0.4, axis=-1)
    return paddle.matmul(scores, value)


def linear_3d(x):
    import paddle

    return paddle.nn.Linear(12, 5)(x)


def add_n(x):
    import paddle

    return paddle.add_n([x, x * 3.0, x - 1.0])


def clip_tensor(x):
    import paddle

    return paddle.clip(x, min=paddle.full([1], -0.5), max=paddle.full([1], 0.25))


def addmm(x):
    import paddle

    return paddle.addmm(parameter((3, 4)), x, parameter((5, 4)), beta=0.5, alpha=2.0)


def scale_after(after):
    def build(x):
        import paddle

        return paddle.scale(x, scale=2.5, bias=-1.0, bias_after_scale=after)

    return build


def abs_exp_sqrt(x):
    import paddle

    return paddle.exp(paddle.rsqrt(paddle.sqrt(paddle.abs(x)) + 1.0))


def square_floor_log(x):
    import paddle

    return paddle.log(paddle.square(x) + 1.0) - paddle.floor(x) + paddle.ceil(x)


def inplace(x):
    import paddle

    y = x * 2.0
    y = paddle.nn.functional.relu_(y)
    return y + 1.0


def elementwise_axis(kind, shape, axis):
    return lambda x: raw_operator(x, kind, {"X": [x], "Y": [parameter(shape, 0.5, 2.0)]}, attrs={"axis": axis})


def legacy_fc(rows):
    return lambda x: raw_operator(
        x, "mul", {"X": [x], "Y": [parameter((108, 5))]}, attrs={"x_num_col_dims": rows, "y_num_col_dims": 1}
    )


def legacy_matmul(x):
    weight = parameter((5, 12))
    return raw_operator(
        x, "matmul", {"X": [x], "Y": [weight]}, attrs={"transpose_X": False, "transpose_Y": True, "alpha": 0.5}
    )


def quantized(x):
    """Quantize and dequantize an activation per tensor and a float weight per channel, then convolve."""
    import numpy as np
    import paddle

    def constant(name, array):
        return paddle.static.create_parameter(
            list(array.shape), str(array.dtype), name=name, default_initializer=paddle.nn.initializer.Assign(array)
        )

    def quantize_dequantize(value, scale, axis):
        zero = constant(value.name + ".zero", np.zeros(scale.shape, np.int32))
        step = constant(value.name + ".scale", scale)
        attrs = {"quant_axis": axis, "bit_length": 8, "is_test": True, "only_observer": False}
        quantized = raw_operator(
            value, "quantize_linear", {"X": [value], "Scale": [step], "ZeroPoint": [zero]}, ("Y",), attrs
        )
        return raw_operator(
            quantized, "dequantize_linear", {"X": [quantized], "Scale": [step], "ZeroPoint": [zero]}, ("Y",), attrs
        )

    weight = parameter((12, 6, 3, 3))
    fake_x = quantize_dequantize(x, np.array([1.7], np.float32), -1)
    fake_w = quantize_dequantize(weight, np.linspace(0.5, 1.2, 12).astype(np.float32), 0)
    return paddle.nn.functional.conv2d(fake_x, fake_w, padding=1)
