"""Legacy Paddle operator -> operator of Paddle 3's form (PIR), for the operators that the Paddle writer has: one table.

Names, operands and the order of attributes are those of PaddlePaddle 3.3 (paddle/phi/ops/yaml: ops, op_compat).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Ints:
    """An operand that is an int64 vector, from a legacy attribute."""

    attribute: str


@dataclass(frozen=True)
class IntsOrTensor:
    """An operand that is an integer vector: the legacy input where it is bound, else the legacy attribute."""

    parameter: str
    attribute: str


@dataclass(frozen=True)
class Scalar:
    """An operand that is one number, from a legacy attribute. dtype: PIR's name of its element type."""

    attribute: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Combined:
    """An operand that is a list of tensors, from a legacy input."""

    parameter: str


@dataclass(frozen=True)
class Absent:
    """An operand that training reads."""


Operand: TypeAlias = "str | Ints | IntsOrTensor | Scalar | Combined | Absent"


@dataclass(frozen=True)
class Row:
    """How a legacy operator is written.

    name: the PIR operator. operands: legacy inputs and what takes the place of attributes, in PIR's order.
    attributes: (PIR name, kind, legacy name), in PIR's order; kinds: i32, f32, f64, bool, str, dtype, place, lists
    i32s, i64s, f64s. fixed: attributes that never differ. outputs: legacy outputs in PIR's order, None for one that
    training reads. A row with `several` has one output that is a list of tensors.
    """

    name: str
    operands: tuple[Operand, ...] = ("X",)
    attributes: tuple[tuple[str, str, str], ...] = ()
    outputs: tuple[str | None, ...] = ("Out",)
    several: bool = False
    fixed: Mapping[str, Json] = field(default_factory=dict)


def _same(*attributes: tuple[str, str]) -> tuple[tuple[str, str, str], ...]:
    return tuple((name, kind, name) for name, kind in attributes)


_BINARY = ("X", "Y")
_CONV = (("strides", "i32s"), ("paddings", "i32s"), ("padding_algorithm", "str"))
_QUANTIZER = _same(
    ("quant_axis", "i32"), ("bit_length", "i32"), ("qmin", "i32"), ("qmax", "i32"), ("round_type", "i32"),
    ("is_test", "bool"), ("only_observer", "bool"),
)  # fmt: skip
_LINEAR = ("X", "Scale", "ZeroPoint", Absent(), Absent())
_POOL = _same(
    ("strides", "i64s"), ("paddings", "i64s"), ("ceil_mode", "bool"), ("exclusive", "bool"), ("data_format", "str"),
    ("pooling_type", "str"), ("global_pooling", "bool"), ("adaptive", "bool"), ("padding_algorithm", "str"),
)  # fmt: skip
_BATCH_NORM = (
    *_same(("is_test", "bool"), ("momentum", "f32"), ("epsilon", "f32")), ("data_format", "str", "data_layout"),
    *_same(("use_global_stats", "bool"), ("trainable_statistics", "bool")),
)  # fmt: skip


def _reduction(name: str, **fixed: Json) -> Row:
    return Row(name, ("X", Ints("dim")), (("keepdim", "bool", "keep_dim"),), fixed=fixed)


_INTERPOLATION = _same(
    ("data_format", "str"), ("out_d", "i32"), ("out_h", "i32"), ("out_w", "i32"), ("scale", "f64s"),
    ("interp_method", "str"), ("align_corners", "bool"), ("align_mode", "i32"),
)  # fmt: skip
_INTERPOLATION = tuple((name, kind, "data_layout" if name == "data_format" else legacy)
                       for name, kind, legacy in _INTERPOLATION)  # fmt: skip
_COMPARED = (
    "equal",
    "less_than",
    "less_equal",
    "greater_than",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
)
MORE: Mapping[str, Row] = {
    **{name: Row(name) for name in ("cos", "sin", "sign", "softsign", "logical_not")},
    **{name: Row(name, _BINARY) for name in _COMPARED},
    **{
        f"{mode}_interp_v2": Row(f"{mode}_interp", ("X", Absent(), Absent(), Absent()), _INTERPOLATION)
        for mode in ("nearest", "bilinear", "bicubic")
    },
    "conv2d_transpose": Row(
        "conv2d_transpose", ("Input", "Filter", Ints("output_size")),
        _same(("strides", "i32s"), ("paddings", "i32s"), ("output_padding", "i32s"), ("padding_algorithm", "str"),
              ("groups", "i32"), ("dilations", "i32s"), ("data_format", "str")), ("Output",),
    ),
    "instance_norm": Row("instance_norm", ("X", "Scale", "Bias"), _same(("epsilon", "f32")),
                         ("Y", "SavedMean", "SavedVariance")),
    "arg_max": Row("argmax", ("X", Scalar("axis", "int32")),
                   _same(("keepdims", "bool"), ("flatten", "bool"), ("dtype", "dtype"))),
    "arg_min": Row("argmin", ("X", Scalar("axis", "int32")),
                   _same(("keepdims", "bool"), ("flatten", "bool"), ("dtype", "dtype"))),
    "top_k_v2": Row("topk", ("X", Scalar("k", "int32")),
                    _same(("axis", "i32"), ("largest", "bool"), ("sorted", "bool")), ("Out", "Indices")),
    "elementwise_mod": Row("remainder", _BINARY),
    "where": Row("where", ("Condition", "X", "Y")),
    "take_along_axis": Row("take_along_axis", ("Input", "Index"), (("axis", "i32", "Axis"),), ("Result",)),
    "cumsum": Row("cumsum", ("X", Scalar("axis", "int32")),
                  _same(("flatten", "bool"), ("exclusive", "bool"), ("reverse", "bool"))),
    "tril_triu": Row("tril", ("X",), _same(("diagonal", "i32"))),
    "tile": Row("tile", ("X", Ints("repeat_times"))),
    "pixel_shuffle": Row("pixel_shuffle", ("X",), _same(("upscale_factor", "i32"), ("data_format", "str"))),
    "pad3d": Row("pad3d", ("X", Ints("paddings")),
                 (("mode", "str", "mode"), ("pad_value", "f64", "value"), ("data_format", "str", "data_format"))),
    "fill_any_like": Row("full_like", ("X", Scalar("value")),
                         (("dtype", "dtype", "dtype"), ("place", "place", "dtype"))),
    "softplus": Row("softplus", ("X",), _same(("beta", "f64"), ("threshold", "f64"))),
    "round": Row("round", ("X",), _same(("decimals", "i32"))),
    "reduce_prod": Row("prod", ("X", Ints("dim")),
                       (("keepdim", "bool", "keep_dim"), ("reduce_all", "bool", "reduce_all"))),
}  # fmt: skip
_UNARY = (
    "abs", "ceil", "erf", "exp", "floor", "log", "reciprocal", "sqrt", "relu", "relu6", "sigmoid", "tanh", "assign",
)  # fmt: skip
ROWS: Mapping[str, Row] = {
    **{name: Row(name) for name in _UNARY},
    "conv2d": Row(
        "conv2d", ("Input", "Filter"),
        _same(*_CONV, ("dilations", "i32s"), ("groups", "i32"), ("data_format", "str")), ("Output",),
    ),
    "depthwise_conv2d": Row(
        "depthwise_conv2d", ("Input", "Filter"),
        _same(*_CONV, ("groups", "i32"), ("dilations", "i32s"), ("data_format", "str")), ("Output",),
    ),
    "matmul_v2": Row("matmul", _BINARY, (("transpose_x", "bool", "trans_x"), ("transpose_y", "bool", "trans_y"))),
    "pool2d": Row("pool2d", ("X", Ints("ksize")), _POOL),
    "batch_norm": Row(
        "batch_norm_", ("X", "Mean", "Variance", "Scale", "Bias"), _BATCH_NORM,
        ("Y", "MeanOut", "VarianceOut", "SavedMean", "SavedVariance", None),
    ),
    "norm": Row("norm", ("X",), _same(("axis", "i32"), ("epsilon", "f32"), ("is_test", "bool")), ("Out", "Norm")),
    "layer_norm": Row(
        "layer_norm", ("X", "Scale", "Bias"), _same(("epsilon", "f32"), ("begin_norm_axis", "i32")),
        ("Y", "Mean", "Variance"),
    ),
    "elementwise_add": Row("add", _BINARY),
    "elementwise_sub": Row("subtract", _BINARY),
    "elementwise_mul": Row("multiply", _BINARY),
    "elementwise_div": Row("divide", _BINARY),
    "elementwise_max": Row("maximum", _BINARY),
    "elementwise_min": Row("minimum", _BINARY),
    "elementwise_pow": Row("elementwise_pow", _BINARY),
    "clip": Row("clip", ("X", Scalar("min"), Scalar("max"))),
    "leaky_relu": Row("leaky_relu", ("X",), (("negative_slope", "f64", "alpha"),)),
    "elu": Row("elu", ("X",), _same(("alpha", "f32"))),
    "prelu": Row("prelu", ("X", "Alpha"), _same(("data_format", "str"), ("mode", "str"))),
    "hard_sigmoid": Row("hardsigmoid", ("X",), _same(("slope", "f32"), ("offset", "f32"))),
    "hard_swish": Row("hardswish"),
    "mish": Row("mish", ("X",), (("lambda", "f32", "threshold"),)),
    "gelu": Row("gelu", ("X",), _same(("approximate", "bool"))),
    "softmax": Row("softmax", ("X",), _same(("axis", "i32"))),
    "log_softmax": Row("log_softmax", ("X",), _same(("axis", "i32"))),
    "scale": Row("scale", ("X", Scalar("scale")), _same(("bias", "f32"), ("bias_after_scale", "bool"))),
    "reduce_max": _reduction("max"),
    "reduce_mean": _reduction("mean"),
    "reduce_min": _reduction("min"),
    "reduce_sum": _reduction("sum", dtype={"#": "1.a_dtype", "D": "Undefined(ALL_DTYPE)"}),
    "reshape2": Row("reshape", ("X", Ints("shape"))),
    "flatten_contiguous_range": Row("flatten", ("X",), _same(("start_axis", "i32"), ("stop_axis", "i32"))),
    "transpose2": Row("transpose", ("X",), (("perm", "i32s", "axis"),)),
    "squeeze2": Row("squeeze", ("X", Ints("axes"))),
    "unsqueeze2": Row("unsqueeze", ("X", Ints("axes"))),
    "slice": Row(
        "slice", ("Input", Ints("starts"), Ints("ends")),
        _same(("axes", "i64s"), ("infer_flags", "i64s"), ("decrease_axis", "i64s")),
    ),
    "strided_slice": Row(
        "strided_slice", ("Input", Ints("starts"), Ints("ends"), Ints("strides")), _same(("axes", "i32s"))
    ),
    "gather": Row("gather", ("X", "Index", Scalar("axis", "int32"))),
    "pad": Row("pad", ("X", Scalar("pad_value")), _same(("paddings", "i32s"))),
    "split": Row("split", ("X", Ints("sections"), Scalar("axis", "int32")), several=True),
    "concat": Row("concat", (Combined("X"), Scalar("axis", "int32"))),
    "expand_v2": Row("expand", ("X", IntsOrTensor("Shape", "shape"))),
    "shape": Row("shape", ("Input",)),
    "cast": Row("cast", ("X",), (("dtype", "dtype", "out_dtype"),)),
    **MORE,
    "quantize_linear": Row("quantize_linear", _LINEAR, _QUANTIZER, ("Y", None, None, None)),
    "dequantize_linear": Row("dequantize_linear", _LINEAR, _QUANTIZER, ("Y", None, None, None)),
}  # fmt: skip
