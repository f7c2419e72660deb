"""Rules of rarer operators: resizing, transposed convolution, sorting, comparison. See paddle_ops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.writers.paddle_builder import Attribute
from fullquant.writers.paddle_emitter import Emitter, dims_of
from fullquant.writers.paddle_layers import add_bias, paddle_paddings

_GIVE_SHAPE = "give input_shape when reading the model"


def transposed_convolution(emit: Emitter) -> None:
    """ConvTranspose -> conv2d_transpose, and elementwise_add for the bias."""
    weight = emit.required(1).shape
    if weight is None or len(weight) != 4:
        raise emit.refuse("only two-dimensional convolutions can be written", "keep the model to images")
    if emit.ints_attribute("output_shape", []):
        raise emit.refuse("output_shape leaves the padding open", "write the padding as explicit pads")
    bias = emit.bias(2, 1)
    target = emit.output() if bias is None else emit.temporary("without_bias")
    emit.product(
        "conv2d_transpose",
        ("Input", "Filter", "Output"),
        target,
        strides=emit.ints_attribute("strides", [1, 1]),
        paddings=paddle_paddings(emit),
        output_padding=emit.ints_attribute("output_padding", [0, 0]),
        output_size=[],
        dilations=emit.ints_attribute("dilations", [1, 1]),
        groups=emit.int_attribute("group", 1),
        padding_algorithm="EXPLICIT",
        data_format="NCHW",
    )
    if bias is not None:
        add_bias(emit, target, str(emit.required(2).name), bias)


def instance_normalization(emit: Emitter) -> None:
    """InstanceNormalization -> instance_norm."""
    inputs = {"X": [emit.read(0)]}
    for parameter, index in (("Scale", 1), ("Bias", 2)):
        constant = emit.operand(index)
        assert constant is not None
        inputs[parameter] = [emit.parameter(str(emit.required(index).name), constant)]
    outputs = {"Y": [emit.output()], "SavedMean": [emit.temporary("saved_mean", [-1])]}
    outputs["SavedVariance"] = [emit.temporary("saved_variance", [-1])]
    emit.op("instance_norm", inputs, outputs, epsilon=emit.float_attribute("epsilon", 1e-5))


#: (mode, coordinates) of Resize -> align_corners, align_mode
_SAMPLING = {
    ("nearest", "asymmetric"): (False, 1),
    ("nearest", "align_corners"): (True, 1),
    ("linear", "asymmetric"): (False, 1),
    ("linear", "half_pixel"): (False, 0),
    ("linear", "pytorch_half_pixel"): (False, 0),
    ("linear", "align_corners"): (True, 0),
    ("cubic", "half_pixel"): (False, 0),
    ("cubic", "align_corners"): (True, 0),
}
_INTERPOLATIONS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}
_NEAREST = {"asymmetric": "floor", "align_corners": "round_prefer_ceil"}


def resize(emit: Emitter) -> None:
    """Resize of a map -> nearest_interp_v2, bilinear_interp_v2, bicubic_interp_v2; by factors where it has factors."""
    mode = emit.string_attribute("mode", "nearest")
    coordinates = emit.string_attribute("coordinate_transformation_mode", "half_pixel")
    sampling = _SAMPLING.get((mode, coordinates))
    rounding = emit.string_attribute("nearest_mode", "round_prefer_floor")
    cubic = abs(emit.float_attribute("cubic_coeff_a", -0.75) + 0.75) > 1e-6
    if (
        sampling is None
        or (mode == "nearest" and rounding != _NEAREST[coordinates])
        or (mode == "cubic" and cubic)
        or emit.int_attribute("antialias", 0)
    ):
        raise emit.refuse(f"mode {mode}, {coordinates}, {rounding} is unknown to Paddle", "export with align_corners")
    scales, sizes = emit.constant(2), emit.constant_ints(3)
    before, after = dims_of(emit.required(0)), dims_of(emit.node.outputs[0])
    if len(before) != 4 or len(after) != 4:
        raise emit.refuse("only maps of known rank 4 can be written", _GIVE_SHAPE)
    axes = emit.ints_attribute("axes", [0, 1, 2, 3])
    if axes not in ([0, 1, 2, 3], [2, 3]):
        raise emit.refuse(f"axes {axes} are not height and width", "resize the two last axes alone")
    size = [-1, -1] if not sizes else sizes[-2:]
    if (
        not sampling[0]
        and sampling[1] == 0
        and any(o == 1 and i != 1 for i, o in zip(before[2:], after[2:], strict=True))
    ):
        raise emit.refuse("Paddle takes the first pixel where one is left of an axis, ONNX the middle", "pool instead")
    factors = [] if scales is None else [float(factor) for factor in scales.reshape(-1)[-2:]]
    method = _INTERPOLATIONS[mode]
    emit.op(
        f"{method}_interp_v2",
        {"X": [emit.read(0)]},
        {"Out": [emit.output()]},
        data_layout="NCHW",
        out_d=-1,
        out_h=size[0],
        out_w=size[1],
        interp_method=method,
        align_corners=sampling[0],
        align_mode=sampling[1],
        scale=factors,
    )


def extreme_index(kind: str) -> Callable[[Emitter], None]:
    """The rule for ArgMax or ArgMin -> arg_max, arg_min; the first of equal elements."""

    def rule(emit: Emitter) -> None:
        if emit.int_attribute("select_last_index", 0):
            raise emit.refuse("Paddle takes the first of equal elements", "export without select_last_index")
        emit.op(
            kind, {"X": [emit.read(0)]}, {"Out": [emit.output()]}, axis=emit.int_attribute("axis", 0),
            keepdims=bool(emit.int_attribute("keepdims", 1)), flatten=False, dtype=3,
        )  # fmt: skip

    return rule


def top_k(emit: Emitter) -> None:
    """TopK -> top_k_v2."""
    count = emit.constant_ints(1)
    assert count is not None
    emit.op(
        "top_k_v2", {"X": [emit.read(0)]}, {"Out": [emit.output(0)], "Indices": [emit.output(1)]}, k=count[0],
        axis=emit.int_attribute("axis", -1), largest=bool(emit.int_attribute("largest", 1)),
        sorted=bool(emit.int_attribute("sorted", 1)),
    )  # fmt: skip


def logical(kind: str) -> Callable[[Emitter], None]:
    """The rule for And, Or, Xor, Not -> logical_*."""

    def rule(emit: Emitter) -> None:
        names = ("X", "Y")[: len(emit.node.inputs)]
        emit.op(kind, {name: [emit.read(i)] for i, name in enumerate(names)}, {"Out": [emit.output()]})

    return rule


def remainder(emit: Emitter) -> None:
    """Mod with the sign of the divisor -> elementwise_mod."""
    if emit.int_attribute("fmod", 0):
        raise emit.refuse("a remainder with the sign of the dividend", "write it as x - y * trunc(x / y)")
    emit.op("elementwise_mod", {"X": [emit.read(0)], "Y": [emit.read(1)]}, {"Out": [emit.output()]}, axis=-1)


def where(emit: Emitter) -> None:
    """Where -> where, whose operands have one shape: others are expanded to it."""
    names = ("Condition", "X", "Y")
    inputs = {name: [_in_full(emit, index)] for index, name in enumerate(names)}
    emit.op("where", inputs, {"Out": [emit.output()]})


def _in_full(emit: Emitter, index: int) -> str:
    value, target = emit.required(index), dims_of(emit.node.outputs[0])
    if dims_of(value) == target and target:
        return emit.read(index)
    constant = None if value.const_value is None else np.asarray(value.const_value.numpy())
    other = 3 - index
    if constant is not None and constant.size == 1 and index and dims_of(emit.required(other)) == target:
        full = emit.temporary("in_full", target, constant.dtype.type)
        number = float(constant.reshape(-1)[0])
        emit.op(
            "fill_any_like",
            {"X": [emit.read(other)]},
            {"Out": [full]},
            value=number,
            dtype=int(NUMBER_OF_DTYPE[constant.dtype]),
        )
        return full
    if constant is not None and -1 not in target:
        return emit.parameter(f"{value.name}.in_full", np.ascontiguousarray(np.broadcast_to(constant, target)))
    found = dims_of(value)
    shape = [1] * (len(target) - len(found)) + found
    if any(size < 0 for size, has in zip(target, shape, strict=True) if has != size):
        raise emit.refuse("operands of several shapes and a size that is not known", _GIVE_SHAPE)
    kept = [-1 if has == size else size for size, has in zip(target, shape, strict=True)]
    full = emit.temporary("in_full", target, value.dtype.numpy().type if value.dtype else np.float32)
    emit.op("expand_v2", {"X": [emit.read(index)]}, {"Out": [full]}, shape=kept)
    return full


def gather_elements(emit: Emitter) -> None:
    """GatherElements -> take_along_axis; negative indices of a constant are counted from the front."""
    axis, rank = emit.int_attribute("axis", 0), emit.rank(0)
    if rank is None:
        raise emit.refuse("needs an input of known rank", "run shape inference")
    value, axis = emit.required(1), axis % rank
    if value.const_value is not None:
        array = np.asarray(value.const_value.numpy()).astype(np.int64)
        size = dims_of(emit.required(0))[axis]
        index = emit.parameter(str(value.name), np.where(array < 0, array + size, array))
    else:
        index = emit.read(1)
    emit.op("take_along_axis", {"Input": [emit.read(0)], "Index": [index]}, {"Result": [emit.output()]}, Axis=axis)


def cumulative_sum(emit: Emitter) -> None:
    """CumSum -> cumsum."""
    axis = emit.constant_ints(1)
    assert axis is not None
    options = {name: bool(emit.int_attribute(name, 0)) for name in ("exclusive", "reverse")}
    emit.op("cumsum", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, axis=axis[0], flatten=False, **options)


def triangle(emit: Emitter) -> None:
    """Trilu -> tril_triu."""
    diagonal = emit.constant_ints(1) or [0]
    lower = not emit.int_attribute("upper", 1)
    emit.op("tril_triu", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, diagonal=diagonal[0], lower=lower)


def tile(emit: Emitter) -> None:
    """Tile -> tile."""
    repeats = emit.constant_ints(1)
    assert repeats is not None
    emit.op("tile", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, repeat_times=repeats)


def depth_to_space(emit: Emitter) -> None:
    """DepthToSpace of mode CRD -> pixel_shuffle."""
    if emit.string_attribute("mode", "DCR") != "CRD":
        raise emit.refuse("mode DCR has no counterpart in pixel_shuffle", "write it as Reshape and Transpose")
    factor = emit.int_attribute("blocksize", 1)
    emit.op(
        "pixel_shuffle", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, upscale_factor=factor, data_format="NCHW"
    )  # fmt: skip


#: ONNX's names of padding modes -> those of pad3d
_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad_by_content(emit: Emitter, mode: str, sides: list[int]) -> None:
    """Pad of a map with its own pixels -> pad3d, which wants one more axis. sides: begin and end of each axis."""
    if mode not in _PAD_MODES or len(sides) not in (8, 10) or any(sides[:4]):
        raise emit.refuse(f"mode {mode}, pads {sides}: only the two last axes of a map can be padded so", "rewrite it")
    (front, back), (top, bottom, left, right) = ([0, 0] if len(sides) == 8 else sides[4:6]), sides[-4:]
    attributes: dict[str, Attribute] = {
        "paddings": [left, right, top, bottom, front, back], "mode": _PAD_MODES[mode], "value": 0.0,
        "data_format": "NCDHW",
    }  # fmt: skip
    if len(sides) == 10:
        emit.op("pad3d", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, **attributes)
        return
    before, after = dims_of(emit.required(0)), dims_of(emit.node.outputs[0])
    deep = emit.temporary("deep", [*before[:2], 1, *before[2:]])
    padded = emit.temporary("padded", [*after[:2], 1, *after[2:]])
    first, second = emit.temporary("xshape", [0, *before]), emit.temporary("xshape", [0, *after[:2], 1, *after[2:]])
    emit.op("unsqueeze2", {"X": [emit.read(0)]}, {"Out": [deep], "XShape": [first]}, axes=[2])
    emit.op("pad3d", {"X": [deep]}, {"Out": [padded]}, **attributes)
    emit.op("squeeze2", {"X": [padded]}, {"Out": [emit.output()], "XShape": [second]}, axes=[2])
