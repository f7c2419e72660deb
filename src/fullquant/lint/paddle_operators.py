"""Rules on the operators of a Paddle file as they were written: quantizers, their attributes, scales and zero points.

A rule names what breaks a pass of Paddle Lite; paths are those of Paddle-Lite 3d329c954c.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from fullquant.lint.finding import Finding
from fullquant.lint.lite_passes import FAKE_BOTH, FAKE_DEQUANTIZE, FAKE_QUANTIZE, LAYERS, Array, Fused, Step
from fullquant.readers.program import PaddleOp

_LINEAR = frozenset({"quantize_linear", "dequantize_linear"})
_QUANTIZERS = _LINEAR | FAKE_QUANTIZE | FAKE_BOTH


def rounds(fused: Fused) -> Iterator[Finding]:
    """A quantizer with only_observer copies its input: the file is not evaluated in int8, though it looks like it.

    Paddle, paddle/phi/kernels/impl/quantize_linear_impl.h; PaddleSlim's export writes outputs so.
    """
    for op in fused.program.ops:
        if op.type in _LINEAR and op.attrs.get("only_observer"):
            yield of("observer", input_of(op, "X"), op, "only_observer is true, so that nothing is rounded here")


def is_test(fused: Fused) -> Iterator[Finding]:
    """In training mode the scale follows the data."""
    for op in fused.program.ops:
        if op.type in _QUANTIZERS - {"dequantize_linear"} and op.attrs.get("is_test") is False:
            yield of("training-mode", input_of(op, "X"), op, "is_test is false: the scale would follow the data")


def bits(fused: Fused) -> Iterator[Finding]:
    """Scales are divided by 2**(bit_length - 1) - 1, kernels are int8 (quant_dequant_op_fuser.cc)."""
    for op in fused.program.ops:
        if op.type in _QUANTIZERS and op.attrs.get("bit_length", 8) != 8:
            yield of(
                "bit-length", input_of(op, "X"), op, f"bit_length is {op.attrs.get('bit_length')}, kernels have 8 bits"
            )
        lengths = op.attrs.get("quant_bits") if op.type == "fake_channel_wise_dequantize_max_abs" else None
        if isinstance(lengths, list) and any(length != 8 for length in lengths):
            yield of("bit-length", input_of(op, "X"), op, f"quant_bits are {lengths}, kernels have 8 bits")


def scale_variables(fused: Fused) -> Iterator[Finding]:
    """A scale is a float32 parameter of finite, positive numbers (the passes read it at conversion)."""
    for op in fused.program.ops:
        for name in scale_names(op):
            scale = fused.parameters.get(name)
            if scale is None:
                yield of("scale-constant", name, op, "the scale is no parameter, but is computed or missing")
            elif scale.dtype != np.float32:
                yield of("scale-value", name, op, f"the scale is {scale.dtype}, float32 is needed")
            elif not positive(scale):
                found = f"the scale holds {scale.ravel()[:4].tolist()}: not finite and above 0"
                yield of("scale-value", name, op, found)


def axes(fused: Fused) -> Iterator[Finding]:
    """quant_axis: -1 for one scale; else the axis of the output channels: 0 of a convolution, 1 of a [K, N] matrix.

    QuantizeTensorInPlace and RestoreMatmulFromInt8ToFp32 have these axes fixed (quant_dequant_op_fuser.cc,
    quantization_parameters_removal_pass.cc); Paddle Inference multiplies along the axis that is written.
    """
    layers = {
        name: step
        for step in fused.steps
        if step.op.type in LAYERS
        for name in step.op.inputs.get(weight_input(step), ())
    }
    for op in fused.program.ops:
        axis = op.attrs.get("quant_axis")
        if op.type not in _LINEAR | {"fake_channel_wise_dequantize_max_abs"} or not isinstance(axis, int):
            continue
        scale = fused.parameters.get(next(iter(scale_names(op)), ""))
        several = scale is not None and scale.size > 1
        layer = layers.get(op.first_output()) if op.type in _LINEAR else fused.makers.get(op.first_output())
        if op.type in _LINEAR and layer is None and axis != -1:
            yield of("quant-axis", input_of(op, "X"), op, f"quant_axis is {axis}, an activation has -1")
        if layer is not None and several and axis != channel_axis(layer):
            yield of(
                "quant-axis", input_of(op, "X"), op,
                f"quant_axis is {axis}, the output channels of {layer.label} are on axis {channel_axis(layer)}",
            )  # fmt: skip


def zero_points(fused: Fused) -> Iterator[Finding]:
    """quantize_linear and dequantize_linear have a ZeroPoint: int32 zeros, as many as scales.

    The patterns of quant_dequant_op_fuser.cc need the input; its value is never read, so another one is ignored.
    """
    for op in fused.program.ops:
        if op.type not in _LINEAR:
            continue
        name = input_of(op, "ZeroPoint")
        zero = fused.parameters.get(name)
        if not name or zero is None:
            yield of("zero-point", name or input_of(op, "X"), op, "there is no ZeroPoint among the parameters")
            continue
        if zero.dtype != np.int32:
            yield of("zero-point", name, op, f"ZeroPoint is {zero.dtype}, int32 is needed")
        if np.any(zero != 0):
            yield of("zero-point", name, op, "ZeroPoint is not 0: Paddle Lite ignores it")
        scale = fused.parameters.get(input_of(op, "Scale"))
        if scale is not None and scale.size != zero.size:
            yield of("zero-point", name, op, f"{zero.size} zero points for {scale.size} scales")


def pairs(fused: Fused) -> Iterator[Finding]:
    """Quantizers that no pass takes away: a Q without its DQ on the same Scale variable, a DQ of a computed tensor.

    Paddle Lite has no kernels for them ("No kernels found for ..."), or checks fail (CHECK(is_weight)).
    """
    for op in fused.left:
        if op.type == "quantize_linear":
            why = "no dequantize_linear on the same Scale variable reads its output alone"
        elif op.type == "dequantize_linear":
            why = "its input is neither a parameter nor the output of a quantize_linear on the same Scale variable"
        elif op.type in FAKE_DEQUANTIZE:
            why = "it does not stand behind a layer, or has no scale"
        else:
            why = "its scale is no parameter"
        yield of("pair", input_of(op, "X"), op, f"{op.type} is not fused: {why}")


def shared_variables(fused: Fused) -> Iterator[Finding]:
    """A weight's Scale and ZeroPoint belong to it alone; so does the scale variable of a fake_quantize operator.

    The first fusion removes the variable, and the pattern of the second no longer matches. (A Q and its DQ share.)
    """
    users: dict[str, list[PaddleOp]] = defaultdict(list)
    for op in fused.program.ops:
        if op.type == "dequantize_linear" and input_of(op, "X") in fused.parameters:
            for name in {input_of(op, "Scale"), input_of(op, "ZeroPoint")} - {""}:
                users[name].append(op)
        elif op.type in FAKE_QUANTIZE | FAKE_BOTH:
            users[input_of(op, "InScale")].append(op)
        elif op.type == "fake_channel_wise_dequantize_max_abs":
            users[op.inputs.get("Scales", ("",))[0]].append(op)
    for name, ops in users.items():
        if len(ops) > 1:
            yield of("shared-scale", name, ops[1], f"{len(ops)} operators use this variable; each needs its own copy")


def positive(scale: Array) -> bool:
    """Whether an array holds numbers, all finite and above 0."""
    numbers = np.asarray(scale, dtype=np.float64)
    return bool(numbers.size > 0 and np.all(np.isfinite(numbers)) and np.all(numbers > 0))


def weight_input(step: Step) -> str:
    """What a layer calls its weights."""
    return LAYERS[step.op.type][1]


def channel_axis(step: Step) -> int:
    """The axis of the output channels in a layer's weights."""
    if step.op.type in ("conv2d", "depthwise_conv2d"):
        return 0
    transposed = step.op.attrs.get("trans_y") or step.op.attrs.get("transpose_Y")
    return 0 if step.op.type != "conv2d_transpose" and transposed else 1


def scale_names(op: PaddleOp) -> tuple[str, ...]:
    """The variables with the scales of a quantizer."""
    if op.type in _LINEAR:
        return op.inputs.get("Scale", ("",))
    if op.type in FAKE_QUANTIZE | FAKE_BOTH:
        return op.inputs.get("InScale", ("",))
    if op.type == "fake_channel_wise_dequantize_max_abs":
        return op.inputs.get("Scales", ("",))
    return op.inputs.get("Scale", ("",)) if op.type == "fake_dequantize_max_abs" else ()


def input_of(op: PaddleOp, parameter: str) -> str:
    """The first variable of an input, an empty name for none."""
    names = op.inputs.get(parameter, ())
    return names[0] if names else ""


def of(rule: str, variable: str, op: PaddleOp, message: str) -> Finding:
    """A finding at an operator of the file."""
    return Finding(rule, variable or op.first_output() or op.type, f"{op.type} {op.first_output()!r}", message)
