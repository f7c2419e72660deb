"""The targets: data, no control flow. Adding an operator or a runtime changes this file.

`sources` say where a fact was read. docs/targets.md is made from these tables by `fullquant.placement.document`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fullquant.numerics.qparams import QuantSpec
from fullquant.placement.rules import Granularity, Role, Source, Target, rules_of

_COMPUTE = (
    "Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "HardSwish", "HardSigmoid", "Sigmoid",
    "Tanh", "Softmax", "LogSoftmax", "Gelu", "Erf", "Mish", "Elu", "LeakyRelu", "PRelu", "Exp", "Sqrt",
    "Abs", "Neg", "Log", "Floor", "Sign", "Sin", "Cos", "Reciprocal", "Softplus",
    "GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum", "BatchNormalization", "LayerNormalization", "Resize",
    "ConvTranspose", "Where", "LpNormalization",
)  # fmt: skip
_MOVE = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "ReduceMax",
    "ReduceMin", "Identity", "Split", "Gather", "Expand", "Tile", "Concat", "DepthToSpace",
    "TopK",
)  # fmt: skip
_CLAMP = ("Relu", "Clip")
_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(_COMPUTE, "compute"), **dict.fromkeys(_MOVE, "move"), **dict.fromkeys(_CLAMP, "clamp"),
}  # fmt: skip
_FUSES = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div"})

# Paddle's quantize_linear clips to [-128, 127] and rounds half to even; ONNX QuantizeLinear does the same.
_INT8 = QuantSpec(-128, 127)
_UINT8_AFFINE = QuantSpec(0, 255, symmetric=False)
# The same grid for what is never below 0: its zero point is then 0.
_UINT8 = _UINT8_AFFINE
# -128 is left out: without it a product of two int8 values is at most 127 * 128, and negation is exact.
_INT8_WEIGHT = QuantSpec(-127, 127)

_PER_CHANNEL: Mapping[str, Granularity] = {"Conv": "per_channel", "Gemm": "per_channel", "MatMul": "per_channel"}

_LITE = "Paddle-Lite 3d329c954c"
_LITE_PASSES = f"{_LITE}, lite/core/optimizer/mir"
_LITE_NNADAPTER = f"{_LITE}, lite/kernels/nnadapter/converter"
_TIMVX = f"{_LITE}, lite/backends/nnadapter/nnadapter/src"

_PADDLE_LITE = Target(
    name="paddle_lite",
    title="Paddle Lite on ARM processors",
    activation=_INT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(_ROLES, frozenset({"Conv", "Gemm", "MatMul", "Relu", "Clip"}), _PER_CHANNEL),
    fuses_activation=_FUSES,
    bias="float32",
    writes_paddle=True,
    onnx_layout="onnxruntime",
    sources=(
        Source(
            "int8 kernels are registered for conv2d, depthwise_conv2d, conv2d_transpose, fc, mul, matmul, matmul_v2 "
            "(and recurrent cells) alone; everything else runs in float32",
            f"{_LITE}, lite/kernels/arm/*_compute.cc",
        ),
        Source(
            "relu, relu6 and leaky_relu are fused into the convolution, hard_swish too except behind a depthwise one: "
            "computed in float on the scaled accumulator, rounded once",
            f"{_LITE_PASSES}/fusion/conv_activation_fuse_pass.cc",
        ),
        Source(
            "a layer writes int8 only if every reader of its output is an int8 layer, else float32: the rounding "
            "between a convolution and, say, a HardSwish is not done",
            f"{_LITE_PASSES}/static_kernel_pick_pass.cc",
        ),
        Source(
            "the bias is float32, added to the scaled accumulator",
            f"{_LITE}, lite/kernels/arm/conv_gemmlike.cc, lite/backends/arm/math/conv_block_utils.h",
        ),
        Source(
            "these kernels round half away from zero and end at -127: a value at -128 loses one step",
            f"{_LITE}, lite/backends/arm/math/type_trans.cc, conv_block_utils.h",
        ),
    ),
)

# What nnadapter hands to TIM-VX: a converter in lite/kernels/nnadapter that names the device, and one in the driver.
_TIMVX_INT8 = frozenset({
    "Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "HardSwish", "HardSigmoid", "Sigmoid",
    "Tanh", "Softmax", "LogSoftmax", "Gelu", "LeakyRelu", "PRelu", "Exp", "GlobalAveragePool", "AveragePool",
    "ReduceMean", "ReduceSum", "BatchNormalization", "LayerNormalization", "Resize", "Reshape", "Flatten", "Transpose",
    "Squeeze", "Unsqueeze", "Slice", "MaxPool", "GlobalMaxPool", "ReduceMax", "Identity", "Split", "Gather", "Expand",
    "Concat", "Relu", "Clip",
})  # fmt: skip

_VERISILICON_TIMVX = Target(
    name="verisilicon_timvx",
    title="VeriSilicon NPUs, by Paddle Lite and TIM-VX",
    activation=_INT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(_ROLES, _TIMVX_INT8, {"Conv": "per_channel", "Gemm": "per_channel", "MatMul": "per_tensor"}),
    fuses_activation=_FUSES,
    bias="int32",
    writes_paddle=True,
    onnx_layout="onnxruntime",
    sources=(
        Source(
            "the operators with a converter for this device; pad2d, pad3d, tile, sqrt, erf, mish and elu have none and "
            "go to the CPU, which cuts the NPU's part in two",
            f"{_LITE_NNADAPTER}/all.h; {_TIMVX}/driver/verisilicon_timvx/converter/all.h",
        ),
        Source(
            "an operator is taken into an int8 subgraph if one input and one output have scales",
            f"{_LITE_PASSES}/subgraph/subgraph_detector.cc",
        ),
        Source(
            "int8 activations become uint8 with zero point 128, the same numbers; outputs of softmax and sigmoid get "
            "zero point 0 and so end at 255 steps instead of 127, which a calibrated scale does not reach",
            f"{_TIMVX}/optimizer/convert_quantization_symm_to_asymm.cc",
        ),
        Source(
            "the bias is rounded to int32 at scale_x * scale_w by the converter; it has C_out elements",
            f"{_LITE_NNADAPTER}/conv2d.cc; {_TIMVX}/optimizer/fuse_matmul_add_into_fully_connected.cc",
        ),
        Source(
            "per-channel scales of a matrix product are put on axis 0, which is right only when the product and its "
            "bias become one fully connected layer, whose weights are transposed",
            f"{_LITE_NNADAPTER}/matmul_v2.cc; {_TIMVX}/optimizer/fuse_matmul_add_into_fully_connected.cc",
        ),
        Source(
            "hard_swish must be threshold 6, scale 6, offset 3",
            f"{_TIMVX}/driver/verisilicon_timvx/converter/hard_swish.cc",
        ),
    ),
)

_PADDLE_INFERENCE = Target(
    name="paddle_inference",
    title="Paddle Inference on x86 with oneDNN",
    activation=_INT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(
        _ROLES,
        frozenset({
            "Conv", "Gemm", "Add", "Mul", "AveragePool", "MaxPool", "GlobalMaxPool", "Concat", "Resize",
            "Reshape", "Transpose", "Slice", "Split", "Relu", "Clip",
        }),
        _PER_CHANNEL,
    ),
    fuses_activation=_FUSES,
    fused_functions=frozenset({"HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "Abs"}),
    function_layers=frozenset({"Conv"}),
    keeps_scale=frozenset({"AveragePool"}),
    fused_sums=True,
    rounds_floats=False,
    requantizes_weights=True,
    free_results=frozenset({"Add", "Mul"}),
    clamps_by_clip=True,
    bias="int32",
    writes_paddle=True,
    onnx_layout="onnxruntime",
    sources=(
        Source(
            "the operator types that oneDNN's int8 passes mark: concat, conv2d, depthwise_conv2d, fc, matmul(_v2), "
            "elementwise_add, _mul, _sub, nearest_interp, pool2d, reshape2, transpose2, slice, split",
            "Paddle 05ba5e5125, paddle/fluid/framework/ir/onednn/cpu_quantize_placement_pass.cc, cpu_quantize_pass.cc",
        ),
        Source(
            "without oneDNN every operator is computed in float32 and quantize_linear rounds as the file says: clip to "
            "[qmin, qmax], round half to even",
            "Paddle, paddle/phi/kernels/impl/quantize_linear_impl.h",
        ),
        Source(
            "the bias of an int8 convolution is rounded to int32",
            "Paddle, paddle/fluid/framework/ir/onednn/params_quantization_onednn_pass.cc",
        ),
        Source(
            "what float kernels make and read is rounded nowhere; a convolution takes the function behind it in, and "
            "the sum of a residual block, unrounded; weights become integers again, with max|w| / 127 of each channel",
            "Paddle 0ab6998c22, 45f651a798, paddle/fluid/framework/ir/onednn/conv_activation_onednn_fuse_pass.cc, "
            "conv_elementwise_add_onednn_fuse_pass.cc, compute_propagate_scales_onednn_pass.cc; tried, Paddle 3.3.1",
        ),
        Source(
            "the output of a relu gets 255 steps where the file says 127, that of clip 127; the output of a pool2d "
            "gets the scale of its input: the files have clip, and reduce_mean for the average over an image",
            "Paddle f546958786, paddle/fluid/framework/ir/onednn/compute_propagate_scales_onednn_pass.cc; tried",
        ),
        Source(
            "int8 fc (scales of weights from the wrong numbers) and elementwise_sub do not compute what the file "
            "says: the files have convolutions for products of matrices, float for differences and other products",
            "tried, Paddle 3.3.1; docs/decisions/0024-what-onednn-computes.md",
        ),
        Source(
            "additions and products of two tensors multiply by inverses of scales: half-way values of short scales go "
            "to one side, and free scales have none",
            "tried, Paddle 3.3.1",
        ),
    ),
)  # fmt: skip

_ORT = "ONNX Runtime 008eeb96a1, onnxruntime/core/optimizer/qdq_transformer/selectors_actions"

_ONNXRUNTIME = Target(
    name="onnxruntime",
    title="ONNX Runtime on CPUs",
    activation=_UINT8_AFFINE,
    weight=_INT8_WEIGHT,
    rules=rules_of(
        _ROLES,
        frozenset({
            "Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid",
            "Softmax", "Concat", "Split", "Resize", "MaxPool", "ReduceMax", "Expand", "Flatten", "Gather", "Reshape",
            "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Relu", "Clip",
        }),
        _PER_CHANNEL,
    ),
    fuses_activation=_FUSES,
    bias="int32",
    writes_paddle=False,
    onnx_layout="onnxruntime",
    sources=(
        Source(
            "the operators that a rule replaces, DequantizeLinear and QuantizeLinear around them included: Conv, "
            "MatMul, Gemm, Add, Mul, AveragePool, GlobalAveragePool, LeakyRelu, Sigmoid, Softmax, Concat, Where",
            f"{_ORT}/qdq_selector_action_transformer.cc",
        ),
        Source(
            "the operators around which both are dropped, if the scales are equal: Expand, Flatten, Gather, MaxPool, "
            "ReduceMax, Reshape, Resize, Slice, Split, Squeeze, Tile, Transpose, Unsqueeze",
            f"{_ORT}/qdq_selector_action_transformer.cc",
        ),
        Source(
            "int8 weights beside uint8 activations have the fast kernels; a bias is int32 at scale_x * scale_w",
            "tried, ONNX Runtime 1.32; writers/onnx_qdq.py",
        ),
        Source(
            "an addition multiplies each operand by a float32 ratio of scales, operators add the zero point before "
            "they round half to even, Softmax divides by floor(1 / scale): scales of additions are chosen together, "
            "zero points are even, Softmax has powers of two, and the kernels then give what the file says",
            "tried, ONNX Runtime 1.32; docs/decisions/0019-agreement-of-integer-kernels.md",
        ),
    ),
)  # fmt: skip

_LPT = "OpenVINO 03d382722a, src/common/low_precision_transformations"

_OPENVINO = Target(
    name="openvino",
    title="OpenVINO on CPUs",
    activation=_INT8,
    non_negative=_UINT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(
        _ROLES,
        frozenset({
            "Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "PRelu", "LeakyRelu",
            "ReduceMean", "ReduceSum", "Resize", "Concat", "Split", "MaxPool", "GlobalMaxPool", "ReduceMax", "Reshape",
            "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "DepthToSpace", "Relu", "Clip",
        }),
        _PER_CHANNEL,
    ),
    fuses_activation=_FUSES,
    fused_functions=frozenset({"HardSwish"}),
    fused_sums=True,
    sums_of_any=True,
    free_results=frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"}),
    bias="float32",
    writes_paddle=False,
    onnx_layout="openvino",
    sources=(
        Source(
            "the operations that have a transformation: Add, AvgPool, Clamp, Concat, Convolution, GroupConvolution, "
            "DepthToSpace, Interpolate, MatMul, MaxPool, Multiply, MVN, Pad, PRelu, ReduceMax, ReduceMean, ReduceMin, "
            "ReduceSum, Relu, Reshape, Squeeze, Split, StridedSlice, Subtract, Transpose, Unsqueeze",
            f"{_LPT}/src/low_precision.cpp",
        ),
        Source(
            "files with zero points other than 0 take 1.1 to 2 times as long as with int8 around 0 and uint8 from 0 "
            "where nothing is below 0",
            "measured, OpenVINO 2026.4 on AVX512 with AMX; docs/decisions/0018-openvino-target.md",
        ),
        Source(
            "HardSwish is computed in float inside the convolution in front of it, if no rounding stands between",
            "tried, OpenVINO 2026.4; tests/runtime/test_executed.py",
        ),
        Source(
            "a sum is computed in float inside the convolution in front of it, clamps and HardSwish in between too; a "
            "rounding that a file has there is left out, so that the file would mean something else",
            "tried, OpenVINO 2026.4.1; tests/writers/test_openvino_form.py, docs/decisions/0029-sums-in-openvino.md",
        ),
        Source(
            "averages multiply by 1/n: half-way values, which short scales have, go to either side, and free scales "
            "have none",
            "measured, OpenVINO 2026.4.1; docs/decisions/0029-sums-in-openvino.md",
        ),
        Source(
            "a Pad along one axis and an average that counts its padding put the integer 0 around tensors with another "
            "zero point: files of other targets pad integers instead",
            "tried, OpenVINO 2026.4.1; docs/decisions/0019-agreement-of-integer-kernels.md",
        ),
        Source(
            "the inputs of a Concat are brought to one scale (AlignQuantizationIntervals, AlignQuantizationParameters)",
            f"{_LPT}/src/low_precision.cpp",
        ),
    ),
)  # fmt: skip

_TENSORRT = Target(
    name="tensorrt",
    title="TensorRT on NVIDIA GPUs, explicit quantization",
    activation=_INT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(
        _ROLES,
        frozenset({
            "Conv", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "Concat",
            "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Relu", "Clip",
        }),
        _PER_CHANNEL,
    ),
    fuses_activation=_FUSES,
    bias="float32",
    writes_paddle=True,
    onnx_layout="tensorrt",
    sources=(
        Source(
            "symmetric only: signed int8 with zero point 0",
            "NVIDIA, TensorRT documentation: Working with Quantized Types",
        ),
        Source(
            "activations in [-128, 127], weights in [-127, 127]; values are rounded half to even",
            "NVIDIA, TensorRT Developer Guide: Working with INT8",
        ),
        Source(
            "Q and DQ are fused into convolution, pooling and addition, and moved past layers that only copy; other "
            "layers run in float between DQ and Q. Which these are depends on the version: this list is a careful one",
            "NVIDIA, TensorRT documentation: Explicit Quantization, figures on Q/DQ fusion and propagation",
        ),
    ),
)  # fmt: skip

# ReduceMax and Tile are supported for one image; Expand, LayerNormalization, Erf and Mish are not supported.
_RKNN_INT8 = frozenset({
    "Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Max", "Min", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh",
    "Elu", "LeakyRelu", "PRelu", "AveragePool", "GlobalAveragePool", "BatchNormalization", "Resize", "Reshape",
    "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "Split", "Gather",
    "Concat", "DepthToSpace", "Identity", "Relu", "Clip",
})  # fmt: skip
_RKNN_UNSUPPORTED = frozenset({
    "Expand", "LayerNormalization", "Erf", "Mish",
    # not looked up: refused rather than promised
    "Abs", "Neg", "Log", "Floor", "Sign", "Sin", "Cos", "Reciprocal", "Softplus", "ReduceMin",
    "ConvTranspose", "Where", "TopK", "LpNormalization",
})  # fmt: skip

_RKNN = Target(
    name="rknn",
    title="Rockchip NPUs, symmetric",
    activation=_INT8,
    weight=_INT8_WEIGHT,
    rules=rules_of(
        {name: role for name, role in _ROLES.items() if name not in _RKNN_UNSUPPORTED}, _RKNN_INT8, _PER_CHANNEL
    ),
    fuses_activation=_FUSES,
    bias="float32",
    writes_paddle=True,
    onnx_layout="tensorrt",
    sources=(
        Source(
            "the ONNX operators that are converted, QuantizeLinear and DequantizeLinear among them; Expand, "
            "LayerNormalization, Erf and Mish are not",
            "rockchip-linux/rknn-toolkit2 2c2d03def0, doc/RKNN-Toolkit2_OP_Support-1.6.0.md",
        ),
        Source(
            "one scale per channel (quantized_method channel) or per layer",
            "rockchip-linux/rknn-toolkit2 d333c7d9d0, doc/RKNNToolKit2_API_Difference_With_Toolkit1-1.5.0.md",
        ),
        Source(
            "the first toolkit has dynamic_fixed_point-i8: symmetric, powers of two, one scale per tensor (here: "
            "scale_grid: power_of_two, weight_quantize_type: abs_max); the second asymmetric_quantized-8, of which a "
            "symmetric grid is the case of zero point 0",
            "the same",
        ),
        Source(
            "not stated by Rockchip: what the NPU computes in int8 and what in float16. Softmax, LogSoftmax, Exp, Pow, "
            "Sqrt, Gelu, ReduceMean, ReduceSum, ReduceMax and Tile are taken for float here",
            "our choice, not verified on a board",
        ),
    ),
)

TABLES = (_PADDLE_LITE, _VERISILICON_TIMVX, _PADDLE_INFERENCE, _TENSORRT, _ONNXRUNTIME, _OPENVINO, _RKNN)
