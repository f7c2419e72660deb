"""The table: one row per Paddle operator, for both program formats.

A row says under which names the operator is known in legacy programs (`types`, the first one is used in messages and
node names) and in PIR programs (`pir`), in which order PIR lists its operands, and which rule translates it. PIR
attributes keep their names unless `renames` says otherwise. To add an operator, add a row (and a rule, if none fits).

Operand order and attribute names are those of PaddlePaddle 3.3 (paddle/phi/ops/yaml/ops.yaml, op_compat.yaml).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from fullquant.readers.paddle_ops import (
    assignment,
    attention,
    comparison,
    conv,
    elementwise,
    functions,
    linear,
    lookup,
    normalization,
    padding,
    quantize,
    shape,
    transposed,
)
from fullquant.readers.paddle_ops.context import OpContext

Rule: TypeAlias = Callable[[OpContext], ir.Value | Sequence[ir.Value] | None]


@dataclass(frozen=True)
class Number:
    """A PIR operand that is an attribute in legacy programs: `attr` where it is constant, else the inputs named.

    tensor: legacy input for one tensor; parts: legacy input for a list of tensors with one number each.
    """

    attr: str
    tensor: str = ""
    parts: str = ""


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    operands: what the PIR operands are in order, as legacy inputs (str) or as `Number`; more operands are ignored.
    outputs: the legacy names of the outputs that the rule returns values for, in order; PIR's first results are the
        same. Others (shapes for the backward pass, masks, statistics) are not translated.
    renames: PIR attribute -> legacy attribute.
    """

    types: tuple[str, ...]
    rule: Rule
    pir: tuple[str, ...] = ()
    operands: tuple[str | Number, ...] = ("X",)
    outputs: tuple[str, ...] = ("Out",)
    renames: Mapping[str, str] = field(default_factory=dict)


def _unary(name: str, onnx_type: str, pir: str = "") -> Operator:
    return Operator((name,), elementwise.unary(onnx_type), (pir or name,))


def _binary(name: str, onnx_type: str, pir: str) -> Operator:
    return Operator((name,), elementwise.binary(onnx_type), (pir,), ("X", "Y"))


def _reduction(name: str, onnx_type: str, pir: str) -> Operator:
    axes = Number("dim", "DimTensor", "DimTensorList")
    renames = {"keepdim": "keep_dim", "dtype": "out_dtype", "axis": "dim"}
    return Operator((name,), linear.reduce(onnx_type), (pir,), ("X", axes), renames=renames)


_CONV = ("Input", "Filter")
_SHAPE = Number("shape", "Shape", "ShapeTensor")
_AXES = Number("axes", "AxesTensor", "AxesTensorList")
_AXIS = Number("axis", "AxisTensor", "AxisTensorList")
_STARTS = Number("starts", "StartsTensor", "StartsTensorList")
_ENDS = Number("ends", "EndsTensor", "EndsTensorList")
_STRIDES = Number("strides", "StridesTensor", "StridesTensorList")
_STEPS = Number("steps", "StepsTensor", "StepsTensorList")
_PADDINGS = Number("paddings", "Paddings", "PaddingsList")
_INTERPOLATE = ("X", Number("out_size", "OutSize"), Number("size_list", "", "SizeTensor"), "Scale")

_CONVOLUTION_AND_POOLING = (
    Operator(("conv2d",), conv.conv2d, ("conv2d",), _CONV, ("Output",)),
    Operator(("depthwise_conv2d",), conv.conv2d, ("depthwise_conv2d",), _CONV, ("Output",)),
    Operator(("pool2d",), conv.pool2d, ("pool2d",), ("X", Number("ksize", "KernelSize", "KernelSizeList"))),
    Operator(("max_pool2d_with_index",), conv.pool2d, ("max_pool2d_with_index",), renames={"kernel_size": "ksize"}),
    Operator(
        ("batch_norm", "sync_batch_norm"),
        conv.batch_norm,
        ("batch_norm", "sync_batch_norm"),
        ("X", "Mean", "Variance", "Scale", "Bias"),
        ("Y",),
        {"data_format": "data_layout"},
    ),
    Operator(("layer_norm",), conv.layer_norm, ("layer_norm",), ("X", "Scale", "Bias"), ("Y",)),
    Operator(("nearest_interp_v2", "nearest_interp"), conv.interpolate, ("nearest_interp",), _INTERPOLATE),
    Operator(("bilinear_interp_v2", "bilinear_interp"), conv.interpolate, ("bilinear_interp",), _INTERPOLATE),
    Operator(("bicubic_interp_v2", "bicubic_interp"), conv.interpolate, ("bicubic_interp",), _INTERPOLATE),
)

_TRANSPOSED = ("Input", "Filter", Number("output_size", "OutputSizeTensor", "OutputSizeTensorList"))
_MORE_LAYERS = (
    Operator(("conv2d_transpose",), transposed.conv2d_transpose, ("conv2d_transpose",), _TRANSPOSED, ("Output",)),
    Operator(
        ("depthwise_conv2d_transpose",),
        transposed.conv2d_transpose,
        ("depthwise_conv2d_transpose",),
        _TRANSPOSED,
        ("Output",),
    ),
    Operator(("fold",), transposed.fold, ("fold",), outputs=("Y",)),
    Operator(("unfold",), transposed.unfold, ("unfold",), outputs=("Y",)),
    Operator(("group_norm",), normalization.group_norm, ("group_norm",), ("X", "Scale", "Bias"), ("Y",)),
    Operator(("instance_norm",), normalization.instance_norm, ("instance_norm",), ("X", "Scale", "Bias"), ("Y",)),
    Operator(("norm",), normalization.norm, ("norm",)),
)

_ARITHMETIC = (
    _binary("elementwise_add", "Add", "add"),
    _binary("elementwise_sub", "Sub", "subtract"),
    _binary("elementwise_mul", "Mul", "multiply"),
    _binary("elementwise_div", "Div", "divide"),
    _binary("elementwise_max", "Max", "maximum"),
    _binary("elementwise_min", "Min", "minimum"),
    _binary("elementwise_pow", "Pow", "elementwise_pow"),
    Operator(("sum",), elementwise.sum_of, ("add_n",)),
    Operator(
        ("scale",),
        elementwise.scale,
        ("scale",),
        ("X", Number("scale", "ScaleTensor")),
    ),
    Operator(("pow",), elementwise.power, ("pow",), renames={"y": "factor"}),
    Operator(("clip",), elementwise.clip, ("clip",), ("X", Number("min", "Min"), Number("max", "Max"))),
    Operator(("cast",), elementwise.cast, ("cast",), renames={"dtype": "out_dtype"}),
    Operator(("assign",), elementwise.identity, ("assign", "assign_out_", "share_data", "memcpy_d2h", "memcpy_h2d")),
    Operator(
        ("dropout",),
        elementwise.dropout,
        ("dropout",),
        ("X", "Seed", Number("dropout_prob", "DropoutProb")),
        renames={"mode": "dropout_implementation"},
    ),
    Operator(("square",), elementwise.square, ("square",)),
    Operator(("rsqrt",), elementwise.rsqrt, ("rsqrt",)),
    _unary("abs", "Abs"),
    _unary("ceil", "Ceil"),
    _unary("exp", "Exp"),
    _unary("floor", "Floor"),
    _unary("log", "Log"),
    _unary("reciprocal", "Reciprocal"),
    _unary("sqrt", "Sqrt"),
)

_ACTIVATIONS = (
    _unary("relu", "Relu"),
    _unary("sigmoid", "Sigmoid"),
    _unary("tanh", "Tanh"),
    _unary("erf", "Erf"),
    _unary("softsign", "Softsign"),
    Operator(("relu6",), elementwise.relu6, ("relu6",)),
    Operator(("brelu", "hard_tanh"), elementwise.clip, ("hardtanh",)),
    Operator(("leaky_relu",), elementwise.leaky_relu, ("leaky_relu",), renames={"negative_slope": "alpha"}),
    Operator(("elu",), elementwise.elu, ("elu",)),
    Operator(("hard_sigmoid",), elementwise.hard_sigmoid, ("hardsigmoid",)),
    Operator(("hard_swish",), elementwise.hard_swish, ("hardswish",)),
    Operator(("swish",), elementwise.swish, ("swish",)),
    Operator(("silu",), elementwise.swish, ("silu",)),
    Operator(("mish",), elementwise.mish, ("mish",)),
    Operator(("gelu",), elementwise.gelu, ("gelu",)),
    Operator(("softplus",), elementwise.softplus, ("softplus",)),
    Operator(("prelu",), elementwise.prelu, ("prelu",), ("X", "Alpha")),
)

_LOGIC = (
    _binary("equal", "Equal", "equal"),
    Operator(("not_equal",), comparison.not_equal, ("not_equal",), ("X", "Y")),
    _binary("less_than", "Less", "less_than"),
    _binary("less_equal", "LessOrEqual", "less_equal"),
    _binary("greater_than", "Greater", "greater_than"),
    _binary("greater_equal", "GreaterOrEqual", "greater_equal"),
    _binary("logical_and", "And", "logical_and"),
    _binary("logical_or", "Or", "logical_or"),
    _binary("logical_xor", "Xor", "logical_xor"),
    _unary("logical_not", "Not"),
    Operator(("where",), comparison.where, ("where",), ("Condition", "X", "Y")),
    Operator(("elementwise_floordiv",), comparison.floor_divide, ("floor_divide",), ("X", "Y")),
    Operator(("elementwise_mod",), comparison.remainder, ("remainder",), ("X", "Y")),
    Operator(
        ("range",),
        comparison.numbers_in_a_row,
        ("arange",),
        (Number("start", "Start"), Number("end", "End"), Number("step", "Step")),
    ),
    Operator(("linspace",), comparison.linspace, ("linspace",), ("Start", "Stop", "Num")),
    Operator(("meshgrid",), comparison.meshgrid, ("meshgrid",)),
    Operator(("tril_triu",), comparison.triangle(None), ("tril_triu",)),
    Operator(("tril",), comparison.triangle(False), ("tril",)),
    Operator(("triu",), comparison.triangle(True), ("triu",)),
    Operator(("einsum",), linear.einsum, ("einsum",), ("Operands",)),
    Operator(("cumsum",), comparison.cumulated, ("cumsum",), ("X", Number("axis", "AxisTensor"))),
)

_FUNCTIONS = (
    Operator(("selu",), functions.selu, ("selu",)),
    Operator(("celu",), functions.celu, ("celu",)),
    Operator(("logsigmoid",), functions.log_sigmoid, ("logsigmoid",)),
    Operator(("tanh_shrink",), functions.tanh_shrink, ("tanh_shrink",)),
    Operator(("softshrink",), functions.soft_shrink, ("softshrink",), renames={"threshold": "lambda"}),
    Operator(("hard_shrink",), functions.hard_shrink, ("hardshrink",)),
    Operator(("thresholded_relu",), functions.thresholded_relu, ("thresholded_relu",)),
    Operator(("stanh",), functions.stanh, ("stanh",)),
    Operator(("log1p",), functions.log1p, ("log1p",)),
    Operator(("log2",), functions.logarithm(2.0), ("log2",)),
    Operator(("log10",), functions.logarithm(10.0), ("log10",)),
    Operator(("expm1",), functions.expm1, ("expm1",)),
    Operator(("logsumexp",), functions.log_sum_exp, ("logsumexp",)),
    Operator(("maxout",), functions.maxout, ("maxout",)),
    _unary("sin", "Sin"),
    _unary("cos", "Cos"),
    _unary("sign", "Sign"),
    _unary("round", "Round"),
)

_LOOKUP = (
    Operator(("lookup_table_v2",), lookup.embedding, ("embedding",), ("Ids", "W")),
    Operator(("one_hot_v2",), lookup.one_hot, ("one_hot",), ("X", Number("depth", "depth_tensor"))),
    Operator(("take_along_axis",), lookup.take_along_axis, ("take_along_axis",), ("Input", "Index"), ("Result",),
             {"axis": "Axis"}),
    Operator(("arg_min",), lookup.arg_min, ("argmin",), ("X", _AXIS)),
    Operator(("argsort",), lookup.arg_sort, ("argsort",), outputs=("Out", "Indices")),
    Operator(("shuffle_channel",), lookup.shuffle_channel, ("shuffle_channel",)),
    Operator(("channel_shuffle",), lookup.channel_shuffle, ("channel_shuffle",)),
    Operator(("size",), lookup.size, ("numel",), ("Input",)),
    Operator(("pixel_unshuffle",), lookup.pixel_unshuffle, ("pixel_unshuffle",)),
    Operator(("fill_constant_batch_size_like",), lookup.fill_like_batch, ("full_batch_size_like",), ("Input",)),
)  # fmt: skip

_LINEAR = (
    Operator(
        ("matmul_v2", "matmul", "bmm"),
        linear.matmul,
        ("matmul", "bmm"),
        ("X", "Y"),
        renames={"transpose_x": "trans_x", "transpose_y": "trans_y"},
    ),
    Operator(("mul",), linear.mul, ("matmul_with_flatten",), ("X", "Y")),
    Operator(("addmm",), linear.addmm, ("addmm",), ("Input", "X", "Y"), renames={"alpha": "Alpha", "beta": "Beta"}),
    Operator(("softmax",), linear.softmax("Softmax"), ("softmax",)),
    Operator(("log_softmax",), linear.softmax("LogSoftmax"), ("log_softmax",)),
    _reduction("reduce_mean", "ReduceMean", "mean"),
    _reduction("reduce_sum", "ReduceSum", "sum"),
    _reduction("reduce_max", "ReduceMax", "max"),
    _reduction("reduce_min", "ReduceMin", "min"),
    _reduction("reduce_prod", "ReduceProd", "prod"),
    Operator(("mean",), linear.reduce("ReduceMean"), ("mean_all",)),
    Operator(("p_norm",), normalization.p_norm, ("p_norm",)),
    Operator(("arg_max",), linear.arg_max, ("argmax",), ("X", Number("axis", "AxisTensor", "AxisTensorList"))),
    Operator(("top_k_v2", "top_k"), linear.top_k, ("topk",), ("X", Number("k", "K", "KList")), ("Out", "Indices")),
    Operator(("gather", "index_select"), linear.gather, ("gather",), ("X", "Index", Number("axis", "Axis"))),
    Operator(("gather_nd",), linear.gather_nd, ("gather_nd",), ("X", "Index")),
    Operator(("index_select",), linear.gather, ("index_select",), ("X", "Index"), renames={"axis": "dim"}),
)

_ATTENTION = (
    Operator(
        ("flash_attn",),
        attention.flash_attention,
        ("flash_attn",),
        ("q", "k", "v", "fixed_seed_offset", "attn_mask"),
        ("out",),
    ),
    Operator(
        ("memory_efficient_attention",),
        attention.memory_efficient_attention,
        ("memory_efficient_attention",),
        ("query", "key", "value", "bias", "cu_seqlens_q", "cu_seqlens_k", "causal_diagonal", "seqlen_k"),
        ("output",),
    ),
)

_SHAPES = (
    Operator(("reshape2", "reshape"), shape.reshape, ("reshape",), ("X", _SHAPE)),
    Operator(("flatten_contiguous_range",), shape.flatten_range, ("flatten",)),
    Operator(("flatten2", "flatten"), shape.flatten),
    Operator(("transpose2", "transpose"), shape.transpose, ("transpose",), renames={"perm": "axis"}),
    Operator(("squeeze2", "squeeze"), shape.squeeze, ("squeeze",), ("X", _AXES)),
    Operator(("unsqueeze2", "unsqueeze"), shape.unsqueeze, ("unsqueeze",), ("X", _AXES)),
    Operator(("concat",), shape.concat, ("concat",), ("X", _AXIS)),
    Operator(("stack",), shape.stack, ("stack",), outputs=("Y",)),
    Operator(("unbind",), shape.unbind, ("unbind",)),
    Operator(("unstack",), shape.unbind, ("unstack",), outputs=("Y",)),
    Operator(
        ("split",),
        shape.split,
        ("split",),
        ("X", Number("sections", "SectionsTensor", "SectionsTensorList"), _AXIS),
    ),
    Operator(("split_with_num",), shape.split, ("split_with_num",), ("X", _AXIS)),
    Operator(("slice",), shape.slice_, ("slice",), ("Input", _STARTS, _ENDS)),
    Operator(("strided_slice",), shape.strided_slice, ("strided_slice",), ("Input", _STARTS, _ENDS, _STRIDES)),
    Operator(("shape",), shape.shape, ("shape",), ("Input",)),
    Operator(("shape64",), shape.shape, ("shape64",), ("Input",)),
    Operator(("fill_constant",), shape.fill_constant, ("full",), ()),
    Operator(
        ("full_with_tensor",),
        shape.fill_constant,
        ("full_with_tensor",),
        (Number("value", "ValueTensor"), Number("shape", "ShapeTensor", "ShapeTensorList")),
    ),
    Operator(("fill_any_like",), shape.fill_like, ("full_like",), ("X", Number("value", "ValueTensor"))),
    Operator(("set_value",), assignment.set_value, ("set_value", "set_value_"), ("Input", _STARTS, _ENDS, _STEPS)),
    Operator(
        ("set_value_with_tensor",),
        assignment.set_value,
        ("set_value_with_tensor", "set_value_with_tensor_"),
        ("Input", "ValueTensor", _STARTS, _ENDS, _STEPS),
    ),
    Operator(("full_int_array",), shape.full_int_array, ("full_int_array",), ()),
    Operator(("assign_value",), shape.assign_value, ("assign_value",), ("Output",)),
    Operator(("expand_v2",), shape.expand, ("expand",), ("X", Number("shape", "Shape", "expand_shapes_tensor"))),
    Operator(("expand_as_v2",), shape.expand_as, ("expand_as",), ("X", "Y")),
    Operator(("tile",), shape.tile, ("tile",), ("X", Number("repeat_times", "RepeatTimes", "repeat_times_tensor"))),
    Operator(("roll",), shape.roll, ("roll",), ("X", Number("shifts", "ShiftsTensor"))),
    Operator(("flip",), shape.flip, ("flip",)),
    Operator(("pixel_shuffle",), shape.pixel_shuffle, ("pixel_shuffle",)),
    Operator(("pad",), padding.pad, ("pad",), ("X", Number("pad_value", "PadValue"))),
    Operator(("pad2d",), padding.pad2d),
    Operator(("pad3d",), padding.pad3d, ("pad3d",), ("X", _PADDINGS)),
)

_FAKE = ("X", "InScale")
_QUANTIZATION = (
    Operator(("quantize_linear",), quantize.quantize, ("quantize_linear",), ("X", "Scale", "ZeroPoint"), ("Y",)),
    Operator(("dequantize_linear",), quantize.dequantize, ("dequantize_linear",), ("X", "Scale", "ZeroPoint"), ("Y",)),
    # the older form; Paddle 3 programs of fullquant have the last three
    Operator(
        ("fake_quantize_moving_average_abs_max",),
        quantize.fake_quantize,
        ("fake_quantize_moving_average_abs_max",),
        _FAKE,
    ),
    Operator(
        ("fake_quantize_dequantize_moving_average_abs_max",),
        quantize.fake_quantize_dequantize,
        ("fake_quantize_dequantize_moving_average_abs_max",),
        _FAKE,
    ),
    Operator(("fake_dequantize_max_abs",), quantize.fake_dequantize, ("fake_dequantize_max_abs",), ("X", "Scale")),
    Operator(
        ("fake_channel_wise_dequantize_max_abs",),
        quantize.fake_channel_wise_dequantize,
        ("fake_channel_wise_dequantize_max_abs",),
        ("X", "Scales"),
    ),
)

#: title in docs/operators.md -> rows
GROUPS: Mapping[str, tuple[Operator, ...]] = {
    "Convolution, pooling, normalization, resizing": (*_CONVOLUTION_AND_POOLING, *_MORE_LAYERS),
    "Arithmetic": _ARITHMETIC,
    "Activations": _ACTIVATIONS,
    "Other functions": _FUNCTIONS,
    "Comparison, masks, coordinates": _LOGIC,
    "Matrix products, reductions, search": (*_LINEAR, *_ATTENTION, *_LOOKUP),
    "Shapes and moved data": _SHAPES,
    "Quantization": _QUANTIZATION,
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)

LEGACY: Mapping[str, Operator] = {name: row for row in reversed(ROWS) for name in row.types}
PIR: Mapping[str, Operator] = {f"pd_op.{name}": row for row in ROWS for name in row.pir}
