"""Convolution, pooling, normalization and resizing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fullquant.readers.paddle_ops.adaptive import uneven_average, uneven_maximum
from fullquant.readers.paddle_ops.context import OpContext


def require_nchw(c: OpContext, attribute: str = "data_format") -> None:
    """Raises UnsupportedOperatorError for another layout than NCHW."""
    layout = c.text(attribute, "NCHW")
    if layout not in ("NCHW", "AnyLayout", "ANYLAYOUT", "Undefined(AnyLayout)"):
        raise c.unsupported(f"layout {layout} is not read, only NCHW is", "export the model with data_format='NCHW'")


def _same_padding(c: OpContext, x: ir.Value, kernel: list[int], strides: list[int]) -> list[int] | None:
    """ONNX pads of Paddle's SAME: output = ceil(input / stride), the odd pixel at the end. None: sizes unknown."""
    sizes = c.dims(x)[2:]
    begins, ends = [], []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        if size is None and stride != 1:
            return None
        total = k - 1 if size is None else max((math.ceil(size / stride) - 1) * stride + k - size, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return begins + ends


def _window(c: OpContext, x: ir.Value, kernel: list[int], strides: list[int]) -> dict[str, list[int] | str]:
    """The ONNX attributes that stand for `paddings` and `padding_algorithm`."""
    algorithm = c.text("padding_algorithm", "EXPLICIT")
    if algorithm == "VALID":
        return {"pads": [0, 0, 0, 0]}
    if algorithm == "SAME":
        pads = _same_padding(c, x, kernel, strides)
        return {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}
    paddings = c.integers("paddings") or [0, 0]
    if len(paddings) == 2:
        return {"pads": paddings * 2}
    if len(paddings) == 4:  # Paddle: top, bottom, left, right
        top, bottom, left, right = paddings
        return {"pads": [top, left, bottom, right]}
    if len(paddings) == 8 and not any(paddings[:4]):
        _, _, _, _, top, bottom, left, right = paddings
        return {"pads": [top, left, bottom, right]}
    raise c.malformed(f"paddings {paddings} are not understood")


def conv2d(c: OpContext) -> ir.Value:
    """Conv. Paddle's SAME ignores dilations (it sets them to 1), and so does this."""
    require_nchw(c)
    if c.flag("fuse_relu") or c.text("fuse_activation") or c.flag("fuse_residual_connection"):
        raise c.unsupported(
            "oneDNN fusions are part of the file", "export the model without optimizing it for a device"
        )
    x, weight = c.input("Input"), c.input("Filter")
    kernel = c.static_dims(weight, 2, 3)
    strides = c.integers("strides") or [1, 1]
    same = c.text("padding_algorithm", "EXPLICIT") == "SAME"
    dilations = [1, 1] if same else c.integers("dilations") or [1, 1]
    inputs = [x, weight] + ([c.input("Bias")] if c.has("Bias") else [])
    return c.node(
        "Conv",
        *inputs,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        group=c.integer("groups", 1),
        **_window(c, x, kernel, strides),
    )


def pool2d(c: OpContext) -> ir.Value:
    """Average and max pooling: of the whole map, to a given size (adaptive), or with a sliding window."""
    require_nchw(c)
    x = c.input("X")
    average = c.text("pooling_type", "max") == "avg"
    kernel = c.known_integers("ksize", "KernelSize", "KernelSizeList")
    if len(kernel) == 1:
        kernel = kernel * 2
    if c.flag("global_pooling") or (c.flag("adaptive") and kernel == [1, 1]):
        return c.node("GlobalAveragePool" if average else "GlobalMaxPool", x)
    if c.flag("adaptive"):
        return _adaptive_pool(c, x, kernel, average)
    strides = c.integers("strides") or [1, 1]
    window = _window(c, x, kernel, strides)
    ceil_mode = int(c.flag("ceil_mode"))
    if ceil_mode:
        _refuse_empty_windows(c, x, kernel, strides, window.get("pads"))
    if average:
        include_pad = int(not c.flag("exclusive", True))
        return c.node(
            "AveragePool",
            x,
            kernel_shape=kernel,
            strides=strides,
            ceil_mode=ceil_mode,
            count_include_pad=include_pad,
            **window,
        )
    return c.node("MaxPool", x, kernel_shape=kernel, strides=strides, ceil_mode=ceil_mode, **window)


def _refuse_empty_windows(
    c: OpContext, x: ir.Value, kernel: list[int], strides: list[int], pads: list[int] | str | None
) -> None:
    """Paddle's ceil_mode keeps a last window that lies in the padding alone, where it has no number; ONNX drops it."""
    if not isinstance(pads, list):
        return
    for axis, size in enumerate(c.dims(x)[2:]):
        if size is not None:
            last = math.ceil((size + pads[axis] + pads[axis + 2] - kernel[axis]) / strides[axis])
            if last * strides[axis] >= size + pads[axis]:
                raise c.unsupported("ceil_mode adds windows that see nothing but padding", "export without ceil_mode")


def _adaptive_pool(c: OpContext, x: ir.Value, size: list[int], average: bool) -> ir.Value:
    """Pooling to a fixed output size is a plain window where the input is a multiple of it."""
    height, width = c.static_dims(x, 2, 3)
    if height % size[0] or width % size[1]:
        return uneven_average(c, x, [height, width], size) if average else uneven_maximum(c, x, [height, width], size)
    step = [height // size[0], width // size[1]]
    kind = "AveragePool" if average else "MaxPool"
    return c.node(kind, x, kernel_shape=step, strides=step, pads=[0, 0, 0, 0])


def batch_norm(c: OpContext) -> ir.Value:
    """BatchNormalization with the stored statistics; a layer made without scale or bias has none in the file."""
    if not (c.flag("is_test") or c.flag("use_global_stats")):
        raise c.unsupported("batch normalization is in training mode", "call eval() on the model before exporting it")
    x = c.input("X")
    if c.rank(x) > 2:
        require_nchw(c, "data_layout")
    mean, variance = c.input("Mean"), c.input("Variance")
    scale, bias = c.optional("Scale"), c.optional("Bias")
    if scale is None or bias is None:
        (channels,) = c.static_dims(mean, 0)
        scale = c.tensor(np.ones(channels, dtype=np.float32)) if scale is None else scale
        bias = c.tensor(np.zeros(channels, dtype=np.float32)) if bias is None else bias
    return c.node("BatchNormalization", x, scale, bias, mean, variance, epsilon=c.number("epsilon", 1e-5))


def layer_norm(c: OpContext) -> ir.Value:
    """LayerNormalization over the axes from begin_norm_axis on; scale and bias lie flat in the file."""
    x = c.input("X")
    rank = c.rank(x)
    begin = c.axis(c.integer("begin_norm_axis", 1), rank)
    sizes = c.static_dims(x, *range(begin, rank))
    weights: list[ir.Value | None] = []
    for name in ("Scale", "Bias"):
        weight = c.optional(name)
        if weight is not None and len(sizes) > 1:
            weight = c.reshape(weight, sizes)
        weights.append(weight)
    scale = weights[0] if weights[0] is not None else c.tensor(np.ones(sizes, dtype=np.float32))
    inputs = [x, scale] if weights[1] is None else [x, scale, weights[1]]
    return c.node("LayerNormalization", *inputs, axis=begin, epsilon=c.number("epsilon", 1e-5))


def interpolate(c: OpContext) -> ir.Value:
    """Resize, nearest, bilinear or bicubic, of an NCHW map to a fixed size or by a fixed factor.

    Paddle's cubic coefficient is -0.75. An axis of which one pixel is left takes the first one of the input.
    """
    require_nchw(c, "data_format" if c.attr("data_format") is not None else "data_layout")
    x = c.input("X")
    cubic = "bicubic" in c.op.type
    linear = "bilinear" in c.op.type or cubic
    if c.flag("align_corners", True):
        coordinates, nearest = "align_corners", "round_prefer_ceil"
    elif cubic or (linear and c.integer("align_mode", 1) == 0):
        coordinates, nearest = "half_pixel", "floor"
    else:
        coordinates, nearest = "asymmetric", "floor"
    attributes: dict[str, str | float | list[int]] = {
        "mode": "cubic" if cubic else "linear" if linear else "nearest",
        "coordinate_transformation_mode": coordinates,
    }
    if not linear:
        attributes["nearest_mode"] = nearest
    if cubic:
        attributes["cubic_coeff_a"] = -0.75
    scale = _scale_factors(c)
    if scale is not None:
        factors = c.tensor(np.asarray([1.0, 1.0, *scale], dtype=np.float32))
        return c.node("Resize", x, None, factors, None, **attributes)
    size = c.known_integers("out_size", "OutSize", "SizeTensor") or [c.integer("out_h", 0), c.integer("out_w", 0)]
    if min(size) <= 0:
        raise c.malformed(f"the output size is {size}")
    for axis, pixels in enumerate(size, 2):
        if pixels == 1 and coordinates == "half_pixel":
            x = c.node("Slice", x, c.int64([0]), c.int64([1]), c.int64([axis]))
    # the axes named, so that the batch stays free
    return c.node("Resize", x, None, None, c.int64(size), axes=[2, 3], **attributes)


def _scale_factors(c: OpContext) -> list[float] | None:
    """Factors of height and width, where the file gives factors rather than a size."""
    if c.has("OutSize") or c.has("SizeTensor"):
        return None
    stored = c.constant("Scale")
    if c.has("Scale") and stored is None:
        raise c.unsupported("the scale is computed by the model")
    factors = [float(item) for item in stored.ravel()] if stored is not None else c.numbers("scale")
    if not factors or min(factors) <= 0:
        return None
    return factors * 2 if len(factors) == 1 else factors
