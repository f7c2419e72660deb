"""Rules for layers with weights and for pooling: ONNX operator -> Paddle operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fullquant.writers.paddle_emitter import Emitter, dims_of

_PADS_REMEDY = "write the padding as explicit pads"


def paddle_paddings(emit: Emitter, axes: int = 2) -> list[int]:
    """ONNX pads [top, left, bottom, right] -> Paddle's [h, w] where sides agree, else [top, bottom, left, right]."""
    auto = emit.string_attribute("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise emit.refuse(f"auto_pad {auto} depends on the input's size", _PADS_REMEDY)
    pads = [0] * 2 * axes if auto == "VALID" else emit.ints_attribute("pads", [0] * 2 * axes)
    begin, end = pads[:axes], pads[axes:]
    if begin == end:
        return begin
    return [side for pair in zip(begin, end, strict=True) for side in pair]


def convolution(emit: Emitter) -> None:
    """Conv -> conv2d or depthwise_conv2d, and elementwise_add for the bias.

    Paddle Inference ignores conv2d's own input `Bias` on CPUs; Paddle Lite fuses the addition into the convolution
    where the bias is persistable, one-dimensional and has C_out elements.
    """
    weight = emit.required(1).shape
    if weight is None or len(weight) != 4:
        raise emit.refuse("only two-dimensional convolutions can be written", "keep the model to images")
    channels_out, group_channels = dims_of(emit.required(1))[:2]
    groups = emit.int_attribute("group", 1)
    depthwise = groups > 1 and group_channels == 1 and channels_out % groups == 0
    bias = emit.bias(2, 1)
    target = emit.output() if bias is None else emit.temporary("without_bias")
    emit.product(
        "depthwise_conv2d" if depthwise else "conv2d",
        ("Input", "Filter", "Output"),
        target,
        strides=emit.ints_attribute("strides", [1, 1]),
        paddings=paddle_paddings(emit),
        dilations=emit.ints_attribute("dilations", [1, 1]),
        groups=groups,
        padding_algorithm="EXPLICIT",
        data_format="NCHW",
    )
    if bias is not None:
        add_bias(emit, target, str(emit.required(2).name), bias)


def add_bias(emit: Emitter, source: str, name: str, bias: np.ndarray) -> None:
    """Adds elementwise_add along axis 1 of a 1-D parameter, as Paddle's exporters write it."""
    parameter = emit.parameter(name, bias)
    emit.op("elementwise_add", {"X": [source], "Y": [parameter]}, {"Out": [emit.output()]}, axis=1)


def linear(emit: Emitter) -> None:
    """Gemm -> matmul_v2 and elementwise_add. Y = A @ B (+ C), alpha = beta = 1, A not transposed, C of N elements."""
    if emit.int_attribute("transA", 0) or any(emit.float_attribute(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise emit.refuse("transA, alpha and beta have no counterpart in matmul_v2", "fold them into the weights")
    bias = emit.bias(2, 1)
    transposed = bool(emit.int_attribute("transB", 0))
    weight = emit.required(1).shape
    columns = None if weight is None else weight[0 if transposed else 1]
    if bias is not None and bias.shape != (columns,):
        raise emit.refuse(
            f"the bias has {bias.size} elements, the weight {columns} columns", "write it with an Add node"
        )
    target = emit.output() if bias is None else emit.temporary("without_bias")
    _matmul(emit, target, transposed)
    if bias is not None:
        add_bias(emit, target, str(emit.required(2).name), bias)


def matrix_product(emit: Emitter) -> None:
    """MatMul -> matmul_v2; both follow numpy.matmul.

    Paddle's oneDNN passes compute both forms wrongly with integers (decision 0024). A transposed weight and operands
    without scales keep them from it.
    """
    if not emit.products_in_float:
        _matmul(emit, emit.output(), False)
        return
    weight = emit.transposed_weight(1)
    second = emit.without_scale(1) if weight is None else weight
    inputs = {"X": [emit.without_scale(0)], "Y": [second]}
    emit.op("matmul_v2", inputs, {"Out": [emit.output()]}, trans_x=False, trans_y=weight is not None)


def _matmul(emit: Emitter, target: str, transposed: bool) -> None:
    emit.product("matmul_v2", ("X", "Y", "Out"), target, trans_x=False, trans_y=transposed)


def pool(kind: str) -> Callable[[Emitter], None]:
    """The rule for AveragePool (`avg`) or MaxPool (`max`) -> pool2d."""

    def rule(emit: Emitter) -> None:
        kernel = emit.ints_attribute("kernel_shape", [])
        ceil = bool(emit.int_attribute("ceil_mode", 0))
        include_pad = bool(emit.int_attribute("count_include_pad", 0))
        if len(kernel) != 2 or len(emit.node.outputs) != 1:
            raise emit.refuse("only two-dimensional pooling with one output can be written", "keep the model to images")
        if any(step != 1 for step in emit.ints_attribute("dilations", [1, 1])) or emit.int_attribute(
            "storage_order", 0
        ):
            raise emit.refuse("pool2d knows no dilations and no storage_order", "export without them")
        _pool2d(
            emit,
            kind,
            ksize=kernel,
            strides=emit.ints_attribute("strides", [1, 1]),
            paddings=paddle_paddings(emit),
            ceil_mode=ceil and _rounds_up(emit, kernel),
            exclusive=not include_pad,
        )

    return rule


def _rounds_up(emit: Emitter, kernel: list[int]) -> bool:
    """Whether pool2d needs ceil_mode for ONNX's output: Paddle keeps a last window of no pixels, ONNX does not."""
    sizes, strides = dims_of(emit.required(0))[2:], emit.ints_attribute("strides", [1, 1])
    pads = emit.ints_attribute("pads", [0, 0, 0, 0])
    needs = set()
    for axis, size in enumerate(sizes):
        spare = size + pads[axis] + pads[axis + 2] - kernel[axis]
        if size > 0 and spare % strides[axis]:
            needs.add((spare // strides[axis] + 1) * strides[axis] < size + pads[axis])
    if len(needs) > 1:
        raise emit.refuse("ceil_mode adds a window along one axis and none along the other", "export without ceil_mode")
    return needs != {False}


def global_pool(kind: str) -> Callable[[Emitter], None]:
    """The rule for GlobalAveragePool or GlobalMaxPool -> pool2d to 1x1.

    The average is written as adaptive, as Paddle's layers export it; Paddle 3.3.1 computes an adaptive maximum wrongly.
    """

    def rule(emit: Emitter) -> None:
        if emit.rank(0) not in (None, 4):
            raise emit.refuse("only two-dimensional pooling can be written", "keep the model to images")
        adaptive = kind == "avg"
        _pool2d(
            emit,
            kind,
            ksize=[1, 1],
            strides=[1, 1],
            paddings=[0, 0],
            adaptive=adaptive,
            global_pooling=not adaptive,
        )

    return rule


def _pool2d(
    emit: Emitter,
    kind: str,
    *,
    ksize: list[int],
    strides: list[int],
    paddings: list[int],
    adaptive: bool = False,
    global_pooling: bool = False,
    ceil_mode: bool = False,
    exclusive: bool = True,
) -> None:
    emit.op(
        "pool2d",
        {"X": [emit.read(0)]},
        {"Out": [emit.output()]},
        pooling_type=kind,
        ksize=ksize,
        strides=strides,
        paddings=paddings,
        adaptive=adaptive,
        ceil_mode=ceil_mode,
        exclusive=exclusive,
        global_pooling=global_pooling,
        padding_algorithm="EXPLICIT",
        data_format="NCHW",
    )


def batch_normalization(emit: Emitter) -> None:
    """BatchNormalization -> batch_norm with stored statistics."""
    if emit.int_attribute("training_mode", 0):
        raise emit.refuse("training_mode is 1", "export the model for inference")
    inputs = {"X": 0, "Scale": 1, "Bias": 2, "Mean": 3, "Variance": 4}
    variables = {parameter: [emit.read(index)] for parameter, index in inputs.items()}
    channels = dims_of(emit.required(1))
    emit.op(
        "batch_norm",
        variables,
        {
            "Y": [emit.output()],
            "MeanOut": variables["Mean"],
            "VarianceOut": variables["Variance"],
            "SavedMean": [emit.temporary("saved_mean", channels)],
            "SavedVariance": [emit.temporary("saved_variance", channels)],
        },
        epsilon=emit.float_attribute("epsilon", 1e-5),
        momentum=emit.float_attribute("momentum", 0.9),
        data_layout="NCHW",
        is_test=True,
        trainable_statistics=False,
        use_global_stats=True,
    )


def layer_normalization(emit: Emitter) -> None:
    """LayerNormalization -> layer_norm, whose Scale and Bias are flat over the normalized axes."""
    rank = emit.rank(0)
    if rank is None or len(emit.node.outputs) != 1:
        raise emit.refuse("needs an input of known rank and one output", "run shape inference, drop the other outputs")
    axis = emit.int_attribute("axis", -1) % rank
    inputs = {"X": [emit.read(0)]}
    for parameter, index in (("Scale", 1), ("Bias", 2)):
        constant = emit.constant(index)
        if constant is not None:
            flat = np.asarray(constant, dtype=np.float32).reshape(-1)
            inputs[parameter] = [emit.parameter(str(emit.required(index).name), flat)]
    outputs = {"Y": [emit.output()], "Mean": [emit.temporary("mean", [-1])]}
    outputs["Variance"] = [emit.temporary("variance", [-1])]
    emit.op("layer_norm", inputs, outputs, begin_norm_axis=axis, epsilon=emit.float_attribute("epsilon", 1e-5))


def lp_normalization(emit: Emitter) -> None:
    """LpNormalization of order 2 -> norm: x / sqrt(sum(x * x) + epsilon)."""
    if emit.int_attribute("p", 2) != 2:
        raise emit.refuse("Paddle divides by norms of order 2 only", "export with p=2")
    outputs = {"Out": [emit.output()], "Norm": [emit.temporary("norm", [-1])]}
    emit.op("norm", {"X": [emit.read(0)]}, outputs, axis=emit.int_attribute("axis", -1), epsilon=1e-12, is_test=True)


def prelu(emit: Emitter) -> None:
    """PRelu with a constant slope, one for all or one per channel: float32, of the numbers on its int8 grid."""
    slope = emit.operand(1)
    rank = emit.rank(0)
    shape: ir.Shape | None = emit.required(0).shape
    if slope is None or rank is None or shape is None:
        raise emit.refuse(
            "needs a constant slope and an input of known rank", "give input_shape when reading the model"
        )
    per_channel = slope.size > 1
    if per_channel and slope.shape != (shape[1],) + (1,) * (rank - 2):
        raise emit.refuse(f"slope of shape {slope.shape} is neither one number nor one per channel", "reshape it")
    inputs = {"X": [emit.read(0)], "Alpha": [emit.parameter(str(emit.required(1).name), slope.reshape(-1))]}
    emit.op("prelu", inputs, {"Out": [emit.output()]}, mode="channel" if per_channel else "all", data_format="NCHW")
