"""More operator cases: many results of one input in one program, flattened and joined, so that few programs are made.

`GROUPS` are for both program forms, `LEGACY_GROUPS` for operators and attributes of the legacy form. Where PaddlePaddle
3.3 has no function for legacy programs any more, `either` appends the legacy operator instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.readers.paddle_layers import parameter, raw_operator

Build = Callable[..., Any]
Group = tuple[tuple[int, ...], Sequence[Build]]

IMAGE = (-1, 6, 9, 12)
FIXED = (2, 6, 9, 12)
_NUMBER = {"float32": 5, "int64": 3, "int32": 2, "bool": 0}


def joined(builds: Sequence[Build]) -> Build:
    """All results as float32 in one vector."""

    def build(x):
        import paddle

        parts = []
        for one in builds:
            results = one(x)
            results = results if isinstance(results, list | tuple) else [results]
            parts += [paddle.reshape(paddle.cast(result, "float32"), [-1]) for result in results]
        # Paddle 3 does not load a program without parameters
        return paddle.concat(parts) * parameter((1,), 0.9, 1.1)

    return build


def is_pir() -> bool:
    import paddle

    return bool(paddle.framework.in_pir_mode())


def either(name: str, kind: str, attrs: dict[str, Any] | None = None, **options: Any) -> Build:
    """paddle.<name> or paddle.nn.functional.<name> in Paddle 3's form, the raw operator `kind` in the legacy form."""

    def build(x):
        import paddle

        if is_pir():
            return (getattr(paddle.nn.functional, name, None) or getattr(paddle, name))(x, **options)
        return raw_operator(x, kind, attrs={**options, **(attrs or {})})

    return build


def of(name: str, *args: Any, **options: Any) -> Build:
    """paddle.<name> or paddle.nn.functional.<name>."""

    def build(x):
        import paddle

        places = (paddle.nn.functional, paddle, paddle.linalg)
        found = next(f for place in places if callable(f := getattr(place, name, None)))
        return found(x, *args, **options)

    return build


def only_pir(build: Build) -> Build:
    """PaddlePaddle 3.3's function makes no legacy program: the input itself there."""
    return lambda x: build(x) if is_pir() else x


def only_legacy(build: Build) -> Build:
    """What Paddle 3's form cannot hold (JSON has no infinity): the input itself there."""
    return lambda x: x if is_pir() else build(x)


def p_norm(order: float, axis: int | None = None, keepdim: bool = False) -> Build:
    def build(x):
        if is_pir():
            return of("norm", p=order, axis=axis, keepdim=keepdim)(x)
        attrs = {"porder": order, "axis": axis or 0, "asvector": axis is None, "keepdim": keepdim}
        return raw_operator(x, "p_norm", attrs=attrs)

    return build


def after(first: Build, second: Build) -> Build:
    return lambda x: second(first(x))


def positive(build: Build) -> Build:
    return lambda x: build(x * x + 0.1)


def transposed_conv(groups: int = 1, **options: Any) -> Build:
    def build(x):
        import paddle

        return paddle.nn.functional.conv2d_transpose(
            x, parameter((6, 4 if groups < 6 else 1, 3, 3)), groups=groups, **options
        )

    return build


def plain_conv(**options: Any) -> Build:
    def build(x):
        import paddle

        weight = parameter((6, 6 // options.get("groups", 1), *options.pop("kernel", (3, 3))))
        return paddle.nn.functional.conv2d(x, weight, **options)

    return build


def pooled(kind: str, **options: Any) -> Build:
    return of(f"{kind}_pool2d", **options)


def pooling(**attrs: Any) -> Build:
    """The raw operator, for attributes that no function passes on."""
    whole = {"ksize": [3, 3], "strides": [2, 2], "paddings": [0, 0], "data_format": "NCHW", **attrs}
    return lambda x: raw_operator(x, "pool2d", attrs=whole)


def group_normalized(groups: int, epsilon: float = 1e-5, affine: bool = True) -> Build:
    def build(x):
        import paddle

        vectors = {"weight": parameter((6,)), "bias": parameter((6,))} if affine else {}
        return paddle.nn.functional.group_norm(x, groups, epsilon, **vectors)

    return build


def instance_normalized(x):
    import paddle

    return paddle.nn.functional.instance_norm(x, weight=parameter((6,)), bias=parameter((6,)), eps=1e-3)


def compared(kind: str, pir: str) -> Build:
    def build(x):
        import paddle

        other = paddle.roll(x, 1, axis=[3]) if is_pir() else raw_operator(x, "roll", attrs={"shifts": [1], "axis": [3]})
        x, other = paddle.cast(x * 2.0, "int32"), paddle.cast(other * 2.0, "int32")
        if is_pir():
            return getattr(paddle, pir)(x, other)
        return raw_operator(x, kind, {"X": [x], "Y": [other]}, attrs={"axis": -1}, dtype="bool")

    return build


def two(kind: str, pir: str, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Build:
    """An operator with a parameter as its second operand."""

    def build(x):
        import paddle

        other = parameter(shape, low, high)
        if is_pir():
            return getattr(paddle, pir)(x, other)
        return raw_operator(x, kind, {"X": [x], "Y": [other]}, attrs={"axis": -1})

    return build


def logical(x):
    import paddle

    zero, one = paddle.full([1], 0.0), paddle.full([1], 1.0)
    if is_pir():
        a, b = paddle.greater_than(x, zero), paddle.less_than(x, one)
        results = [paddle.logical_and(a, b), paddle.logical_or(a, b), paddle.logical_xor(a, b), paddle.logical_not(a)]
        return [*results, paddle.where(a, x, x * 0.5)]
    a = raw_operator(x, "greater_than", {"X": [x], "Y": [zero]}, attrs={"axis": -1}, dtype="bool")
    b = raw_operator(x, "less_than", {"X": [x], "Y": [one]}, attrs={"axis": -1}, dtype="bool")
    pair = {"X": [a], "Y": [b]}
    results = [raw_operator(a, f"logical_{kind}", pair, dtype="bool") for kind in ("and", "or", "xor")]
    results.append(raw_operator(a, "logical_not", {"X": [a]}, dtype="bool"))
    return [*results, raw_operator(a, "where", {"Condition": [a], "X": [x], "Y": [x * 0.5]})]


def coordinates(x):
    """A bias from positions, as attention blocks with relative positions compute it."""
    import paddle

    rows, columns = paddle.arange(0, 9, dtype="int64"), paddle.arange(12)
    grid = paddle.meshgrid(rows, columns)
    steps = paddle.linspace(0.0, 1.0, 12)
    return x + paddle.cast(grid[0] * 2 - grid[1], "float32") + steps


def triangles(x):
    import paddle

    if is_pir():
        return [paddle.tril(x, 1), paddle.triu(x, -1)]
    return [raw_operator(x, "tril_triu", attrs={"diagonal": d, "lower": low}) for d, low in ((1, True), (-1, False))]


def cumulated(**options: Any) -> Build:
    def build(x):
        import paddle

        if is_pir():
            return paddle.cumsum(x, **options)
        return raw_operator(x, "cumsum", attrs={"axis": options.get("axis", -1), "flatten": "axis" not in options})

    return build


def rows_of_a_table(x):
    import numpy as np
    import paddle

    index = paddle.assign(np.array([[2, 0, 1], [4, 4, 3]], np.int64))
    return paddle.nn.functional.embedding(index, parameter((5, 4))) + 0.0 * paddle.mean(x)


def one_hot(depth: int) -> Build:
    def build(x):
        import paddle

        index = paddle.cast(x * x, "int64")
        if is_pir():
            return paddle.nn.functional.one_hot(index, depth)
        return raw_operator(x, "one_hot_v2", {"X": [index]}, attrs={"depth": depth, "dtype": 5})

    return build


def along_an_axis(x):
    import numpy as np
    import paddle

    index = paddle.assign(np.arange(72, dtype=np.int64).reshape(2, 6, 1, 6) % 9)
    if is_pir():
        return paddle.take_along_axis(x[:, :, :, :6], index, 2, broadcast=False)
    return raw_operator(x, "take_along_axis", {"Input": [x], "Index": [index]}, ("Result",), {"Axis": 2})


def smallest(**options: Any) -> Build:
    def build(x):
        import paddle

        if is_pir():
            return paddle.argmin(x, **options)
        attrs = {
            "axis": options.get("axis", 0),
            "flatten": "axis" not in options,
            "dtype": 3,
            "keepdims": options.get("keepdim", False),
        }
        return raw_operator(x, "arg_min", attrs=attrs, dtype="int64")

    return build


def in_order(descending: bool) -> Build:
    def build(x):
        import paddle

        if is_pir():
            return paddle.argsort(x, axis=1, descending=descending)
        from paddle.base.layer_helper import LayerHelper

        helper = LayerHelper("argsort")
        values, indices = (helper.create_variable_for_type_inference(dtype) for dtype in ("float32", "int64"))
        helper.append_op(type="argsort", inputs={"X": [x]}, outputs={"Out": [values], "Indices": [indices]},
                         attrs={"axis": 1, "descending": descending})  # fmt: skip
        return [values, indices]

    return build


def highest(count: int, **options: Any) -> Build:
    def build(x):
        import paddle

        return paddle.topk(x, count, **options)

    return build


def size_of_batch(x):
    import paddle

    if is_pir():
        return x + paddle._C_ops.full_batch_size_like(x, [-1, 6, 1, 1], paddle.float32, 1.5, 0, 0, paddle.CPUPlace())
    attrs = {"shape": [-1, 6, 1, 1], "value": 1.5, "dtype": 5, "input_dim_idx": 0, "output_dim_idx": 0}
    return x + raw_operator(x, "fill_constant_batch_size_like", {"Input": [x]}, attrs=attrs)


def resized(mode: str, **options: Any) -> Build:
    return of("interpolate", mode=mode, **options)


def with_slopes(count: int) -> Build:
    return lambda x: of("prelu", parameter((count,), 0.1, 0.5))(x)


def product(shape: Sequence[int], before: Build, **options: Any) -> Build:
    def build(x):
        import paddle

        return paddle.matmul(before(x), parameter(shape), **options)

    return build


def pieces(sections: Any, axis: int) -> Build:
    def build(x):
        import paddle

        return paddle.split(x, sections, axis=axis)[::-1]

    return build


def tokens(x):
    """Computed shapes all along: class token, windows, and back, as vision transformers have them."""
    import paddle

    batch, channels, height, width = (paddle.shape(x)[i] for i in range(4))
    flat = paddle.transpose(paddle.reshape(x, [batch, channels, height * width]), [0, 2, 1])
    token = paddle.expand(parameter((1, 1, 6)), [batch, -1, -1])
    both = paddle.concat([token, flat], axis=1)
    windows = paddle.reshape(flat, [batch, height // 3, 3, width // 3, 3, channels])
    windows = paddle.transpose(windows, [0, 1, 3, 2, 4, 5])
    return [both, paddle.reshape(windows, [-1, 9, channels]), paddle.zeros([batch, 2]) + x[:, :2, 0, 0]]


GROUPS: dict[str, Group] = {
    "convolutions": (
        FIXED,
        [
            plain_conv(padding="SAME", stride=3),
            plain_conv(padding="SAME", stride=2, kernel=(5, 3)),
            plain_conv(padding=[[0, 0], [0, 0], [1, 2], [0, 1]]),
            plain_conv(padding="VALID", dilation=2),
            plain_conv(groups=2, stride=[1, 2], kernel=(1, 3)),
        ],
    ),
    "transposed_convolutions": (
        FIXED,
        [
            transposed_conv(),
            transposed_conv(stride=2),
            transposed_conv(stride=2, padding=1, output_padding=1),
            transposed_conv(stride=2, padding=[0, 1, 1, 0]),
            transposed_conv(groups=6, stride=2, padding=1),
            transposed_conv(dilation=2),
            transposed_conv(stride=2, output_size=[20, 26]),
            transposed_conv(groups=2),
        ],
    ),
    "average_pooling": (
        FIXED,
        [
            pooled("avg", kernel_size=[3, 2], stride=[2, 3], padding=[1, 0]),
            pooled("avg", kernel_size=3, stride=2, padding=[0, 1, 1, 0]),
            pooled("avg", kernel_size=3, stride=2, padding=[0, 1, 1, 0], exclusive=False),
            pooled("avg", kernel_size=4, stride=3, ceil_mode=True, padding=1),
            pooled("avg", kernel_size=2, stride=1),
            pooled("avg", kernel_size=3, stride=2, padding="VALID"),
            pooled("avg", kernel_size=9, stride=1),
        ],
    ),
    "maximum_pooling": (
        FIXED,
        [
            pooled("max", kernel_size=[3, 2], stride=[2, 3], padding=[1, 0]),
            pooled("max", kernel_size=3, stride=1, padding=1),
            pooled("max", kernel_size=3, stride=2, padding=1, ceil_mode=True),
            pooled("max", kernel_size=3, stride=2, padding="VALID"),
            pooled("max", kernel_size=3, stride=2, padding="SAME"),
        ],
    ),
    "adaptive_pooling": (
        FIXED,
        [of("adaptive_avg_pool2d", output_size=s) for s in (1, [9, 12], [3, 3], [4, 5], [7, 7], [1, 4], [12, 12])]
        + [of("adaptive_max_pool2d", output_size=s) for s in (1, [3, 3], [4, 5], [1, 4], [9, 7])],
    ),
    "normalization": (
        FIXED,
        [
            group_normalized(2),
            group_normalized(6, 1e-3),
            group_normalized(1),
            group_normalized(3, affine=False),
            instance_normalized,
            of("instance_norm"),
            only_pir(of("normalize", axis=1)),
            only_pir(of("normalize", p=1, axis=-1)),
            p_norm(1.0, 1),
            p_norm(3.0, 2, True),
            only_legacy(p_norm(float("inf"), -1)),
            p_norm(2.0),
        ],
    ),
    "resizing": (
        FIXED,
        [
            resized("nearest", size=[18, 24]),
            resized("nearest", scale_factor=[2.0, 3.0]),
            resized("nearest", size=[4, 5]),
            resized("bilinear", size=[18, 24]),
            resized("bilinear", size=[4, 5], align_mode=1),
            resized("bilinear", scale_factor=2, align_corners=True),
            resized("bilinear", scale_factor=[0.5, 2.0]),
            resized("bilinear", size=[18, 24], align_mode=1),
            resized("bilinear", size=[1, 1]),
            resized("bicubic", scale_factor=2),
            resized("bicubic", size=[7, 20], align_corners=True),
        ],
    ),
    "activations": (
        IMAGE,
        [
            of("leaky_relu", negative_slope=0.01),
            of("elu", alpha=1.0),
            of("relu6"),
            of("hardsigmoid"),
            of("hardswish"),
            of("hardtanh", min=-2.0, max=1.0),
            either("softplus", "softplus"),
            of("mish"),
            of("silu"),
            of("selu"),
            of("celu", alpha=1.0),
            of("celu", alpha=0.7),
            of("softshrink", threshold=0.3),
            of("hardshrink", threshold=0.4),
            of("thresholded_relu", threshold=0.6),
            either("tanhshrink", "tanh_shrink"),
            either("log_sigmoid", "logsigmoid"),
            of("stanh", 0.5, 1.2),
            of("maxout", groups=2),
            of("maxout", groups=3, axis=1),
            with_slopes(1),
            with_slopes(6),
            of("swish"),
            only_pir(of("glu", axis=1)),
        ],
    ),
    "functions": (
        IMAGE,
        [
            either("sin", "sin"),
            either("cos", "cos"),
            either("sign", "sign"),
            either("round", "round"),
            lambda x: either("round", "round")(of("floor")(x * 4.0) * 0.5),
            either("abs", "abs"),
            positive(either("log2", "log2")),
            positive(either("log10", "log10")),
            positive(either("log1p", "log1p")),
            either("expm1", "expm1"),
            positive(either("reciprocal", "reciprocal")),
            positive(of("pow", 0.5)),
            of("pow", 2),
            positive(of("pow", -1.5)),
            only_pir(of("logsumexp", axis=[1, 2])),
            only_pir(of("logsumexp", axis=-1, keepdim=True)),
            only_pir(of("logsumexp")),
            two("elementwise_mod", "remainder", (12,), 0.4, 0.9),
            two("elementwise_floordiv", "floor_divide", (12,), 0.4, 0.9),
            of("clip", -0.3),
            of("clip", max=0.4),
            of("scale", -2.0, 0.25),
            only_pir(of("var", axis=[2, 3])),
            only_pir(of("std", axis=1)),
        ],
    ),
    "comparison": (
        IMAGE,
        [
            compared("equal", "equal"),
            compared("not_equal", "not_equal"),
            compared("less_than", "less_than"),
            compared("less_equal", "less_equal"),
            compared("greater_than", "greater_than"),
            compared("greater_equal", "greater_equal"),
            logical,
        ],
    ),
    "masks": (FIXED, [coordinates, triangles, cumulated(axis=1), cumulated(axis=-1), cumulated(), size_of_batch]),
    "lookup": (
        FIXED,
        [
            rows_of_a_table,
            one_hot(4),
            one_hot(6),
            along_an_axis,
            smallest(axis=1),
            smallest(axis=-1, keepdim=True),
            smallest(),
            in_order(True),
            in_order(False),
            highest(1, axis=1),
            highest(2, axis=-1, largest=False),
            highest(12),
            of("channel_shuffle", 3),
            of("pixel_unshuffle", 3),
            of("pixel_shuffle", 1),
            after(of("unfold", 3), of("fold", [9, 12], 3)),
            after(of("unfold", [3, 2], [3, 2]), of("fold", [9, 12], [3, 2], [3, 2])),
            of("unfold", [3, 4], [3, 4]),
            after(of("unfold", 3, 2, 1), of("fold", [9, 12], 3, 2, 1)),
            of("unfold", 3),
            of("unfold", [2, 3], 2, 1),
        ],
    ),
    "reductions": (
        FIXED,
        [
            of(name, axis=axis, keepdim=keep)
            for name in ("mean", "max", "min", "prod")
            for axis, keep in ((None, False), (1, True), (-2, False), ([2, 3], True), ([0, 1, 2, 3], False))
        ]
        + [of("argmax", axis=1), of("argmax")],
    ),
    "moves": (
        IMAGE,
        [
            of("reshape", [0, -1]),
            of("reshape", [-1, 3, 2, 108]),
            of("reshape", [0, 0, 4, -1]),
            of("flatten", 0, -1),
            of("flatten", -3, -2),
            of("transpose", [3, 0, 2, 1]),
            of("unsqueeze", 0),
            of("unsqueeze", [-1, 2]),
            after(of("unsqueeze", [2, 4]), of("squeeze", axis=-2)),
            of("flip", -1),
            pieces([1, -1, 2], 1),
            pieces(4, 3),
            pieces([5, 7], -1),
            of("unbind", axis=2),
            of("slice", [0, 2], [0, -5], [2, -1]),
            of("strided_slice", [1, 2], [5, 0], [0, 9], [-2, 4]),
            of("strided_slice", [3], [-2], [-20], [-1]),
            of("tile", [2, 1, 1, 2]),
            of("expand", [2, 6, 9, 12]),
            lambda x: of("stack", axis=1)([x, -x]),
            lambda x: of("concat", axis=-2)([x, x[:, :, :3], -x]),
            only_pir(lambda x: of("expand_as", x)(x[:, :1, :, :1])),
            lambda x: x[:, None, ..., ::2, -1],
            lambda x: x[:, 0:1],
        ],
    ),
    "products": (
        FIXED,
        [
            product((12, 5), lambda x: x),
            product((5, 12), lambda x: x, transpose_y=True),
            product((9, 4), lambda x: x, transpose_x=True),
            product((12,), lambda x: x),
            product((2, 6, 12, 3), lambda x: x),
            product((6, 4, 9), lambda x: x, transpose_x=True, transpose_y=True),
        ],
    ),
    "padding": (
        FIXED,
        [
            of("pad", [1, 2, 3, 4]),
            of("pad", [2, 1, 0, 0], mode="reflect"),
            of("pad", [2, 1, 0, 3], mode="replicate"),
            of("pad", [1, 1, 0, 2], mode="circular"),
            of("pad", [0, 1, 0, 0, 0, 2, 0, 0], value=-1.5),
            of("zeropad2d", [1, 0, 2, 1]),
        ],
    ),
    "computed_shapes": (IMAGE, [tokens]),
}

LEGACY_GROUPS: dict[str, Group] = {
    "legacy_pooling": (
        FIXED,
        [
            pooling(pooling_type=kind, **options)
            for kind in ("avg", "max")
            for options in (
                {"global_pooling": True},
                {"paddings": [1, 1], "ceil_mode": True},
                {"padding_algorithm": "SAME"},
                {"padding_algorithm": "VALID", "paddings": [1, 1]},
                {"paddings": [1, 0, 0, 1]},
            )
        ]
        + [
            pooling(pooling_type="avg", ksize=[1, 1], adaptive=True),
            pooling(pooling_type="avg", exclusive=False, paddings=[1, 1]),
        ],
    ),
    "legacy_functions": (
        FIXED,
        [
            lambda x: raw_operator(x, "norm", outputs=("Out", "Norm"), attrs={"axis": 1, "epsilon": 1e-10}),
            lambda x: raw_operator(x, "shuffle_channel", attrs={"group": 2}),
            lambda x: raw_operator(x, "hard_sigmoid", attrs={"slope": 0.2, "offset": 0.5}),
            lambda x: raw_operator(x, "hard_swish", attrs={"threshold": 6.0, "scale": 6.0, "offset": 3.0}),
            lambda x: raw_operator(x, "softmax", attrs={"axis": 2}),
        ],
    ),
}
