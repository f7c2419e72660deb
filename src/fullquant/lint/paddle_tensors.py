"""Rules on the tensors of a Paddle file after Paddle Lite's passes: who has which scale (`lite_passes`).

A rule names what an int8 kernel or converter requires; paths are those of Paddle-Lite 3d329c954c.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fullquant.lint.finding import Finding
from fullquant.lint.lite_passes import Array, Fused, Step
from fullquant.lint.paddle_operators import channel_axis

# What holds data among the inputs and outputs of an operator; others are shapes, statistics, parameters of a formula.
_DATA_IN, _DATA_OUT = ("X", "Y", "Input"), ("Out", "Output", "Y")
_INT32_MAX = 2**31 - 1
_MOVES = frozenset({
    "transpose", "transpose2", "squeeze", "squeeze2", "unsqueeze", "unsqueeze2", "reshape", "reshape2", "flatten",
    "flatten2", "flatten_contiguous_range", "slice", "strided_slice", "split", "concat", "expand_v2",
})  # fmt: skip


def scale_shapes(fused: Fused) -> Iterator[Finding]:
    """One scale for an activation; for a weight one, or one per output channel.

    lite/kernels/nnadapter/converter/conv2d.cc (IsValidSymmPerLayerQuantParams), lite/kernels/arm/conv_compute.cc.
    """
    for step in fused.steps:
        for name, scale in step.in_scales.items():
            if fused.is_constant(name):
                channels = _channels(fused, step, name)
                if channels is not None and scale.size not in (1, channels):
                    yield _at("scale-shape", name, step, f"{scale.size} scales for {channels} output channels")
                if channels is None and scale.size != 1:
                    yield _at("scale-shape", name, step, f"{scale.size} scales for a constant operand, 1 is needed")
            elif scale.size != 1:
                yield _at("scale-shape", name, step, f"{scale.size} scales for an activation, 1 is needed")


def missing_scales(fused: Fused) -> Iterator[Finding]:
    """Every float tensor of an int8 operator has a scale.

    A layer with int8 weights and a missing one stops Paddle Lite ("Missing the quant params", converter/conv2d.cc). Any
    other operator counts as int8 if an input and an output have one (subgraph_detector.cc), and then needs all.
    """
    for step in fused.steps:
        if step.weight is not None and step.weight in step.in_scales:
            yield from _missing(fused, step, "a layer with int8 weights")
        elif step.in_scales and step.out_scales:
            yield from _missing(fused, step, "an int8 operator")


def _missing(fused: Fused, step: Step, what: str) -> Iterator[Finding]:
    inputs = [name for p in _DATA_IN for name in step.inputs.get(p, ()) if name not in step.in_scales]
    outputs = [name for p in _DATA_OUT for name in step.outputs.get(p, ()) if name not in step.out_scales]
    for name in inputs:
        if fused.is_float(name) and not _is_bias(fused, step, name):
            yield _at("missing-scale", name, step, f"input of {what} without a scale")
    for name in outputs:
        if fused.is_float(name) and not _is_read_in_float(fused, name):
            yield _at("missing-scale", name, step, f"output of {what} without a scale")


def _is_read_in_float(fused: Fused, name: str) -> bool:
    """Whether operators alone read the tensor that the file keeps in float (skip_quant, as PaddleSlim writes it).

    Their layer leaves its sums in float; the bias that is added in between belongs to the layer.
    """
    readers = [step for step in fused.steps if name in step.reads()]
    for step in readers:
        biased = step.op.type == "elementwise_add" and any(_is_bias(fused, step, other) for other in step.reads())
        if not step.op.attrs.get("skip_quant") and not (biased and _is_read_in_float(fused, step.writes()[0])):
            return False
    return bool(readers)


def weights(fused: Fused) -> Iterator[Finding]:
    """Weights with a scale are integers in [-127, 127]: int8, or in the older form whole numbers in float32.

    -128 times -128 leaves int16 (lite/backends/arm/math: smlal of pairs); a float weight is cast without rounding.
    """
    for step in fused.steps:
        name = step.weight
        array = None if name is None or name not in step.in_scales else fused.parameters.get(name)
        if name is None or array is None:
            continue
        if array.dtype != np.int8 and not (array.dtype == np.float32 and np.array_equal(array, np.rint(array))):
            yield _at("weight-type", name, step, f"a quantized weight is {array.dtype} and not whole numbers")
        elif np.any(np.abs(array.astype(np.float32)) > 127):
            yield _at("weight-range", name, step, "a quantized weight leaves [-127, 127]")


def biases(fused: Fused) -> Iterator[Finding]:
    """The bias behind an int8 layer is a float32 parameter with C_out elements.

    converter/conv2d.cc: "Only supports bias_dims.production() == output_channel_size", precision kFloat.
    """
    for step in fused.steps:
        for name in step.inputs.get("Y", ()) if step.op.type == "elementwise_add" else ():
            if not _is_bias(fused, step, name):
                continue
            layer = fused.makers[step.inputs["X"][0]]
            assert layer.weight is not None
            bias, channels = fused.parameters[name], _channels(fused, layer, layer.weight)
            if layer.weight in layer.in_scales and bias.size != channels:
                yield _at(
                    "bias-length", name, step, f"a bias of {bias.size} elements behind {channels} output channels"
                )
            if layer.weight in layer.in_scales and bias.dtype != np.float32:
                yield _at("bias-type", name, step, f"a bias is {bias.dtype}, float32 is needed")


def accumulators(fused: Fused) -> Iterator[Finding]:
    """A bias, rounded to scale_x * scale_w, and all products fit into int32.

    converter/conv2d.cc rounds the bias of the file to int32 (SymmQuantizeData), which ends at 2**31 - 1. A channel
    whose weights are almost 0 has so small a scale that its bias does not fit (as in ONNX Runtime issue 11415).
    """
    for step in fused.steps:
        names = step.inputs.get("Y", ()) if step.op.type == "elementwise_add" else ()
        for name in (name for name in names if _is_bias(fused, step, name)):
            layer = fused.makers[step.inputs["X"][0]]
            sums = _largest_sums(fused, layer, fused.parameters[name])
            if sums is not None and np.any(sums > _INT32_MAX):
                channel = int(np.argmax(sums))
                found = f"channel {channel} can reach {sums[channel]:.4g}, int32 ends at 2.147e9"
                yield _at("int32-overflow", name, step, found)


def _largest_sums(fused: Fused, layer: Step, bias: Array) -> npt.NDArray[np.float64] | None:
    """Per output channel |b| / (scale_x * scale_w) + 128 * sum |q_w|; None where a scale is missing or does not fit."""
    assert layer.weight is not None
    data = next((n for p in _DATA_IN for n in layer.inputs.get(p, ()) if n != layer.weight), "")
    x, w, array = layer.in_scales.get(data), layer.in_scales.get(layer.weight), fused.parameters[layer.weight]
    channels = _channels(fused, layer, layer.weight)
    if x is None or w is None or x.size != 1 or bias.size != channels or w.size not in (1, channels):
        return None
    product = x.astype(np.float64) * w.astype(np.float64)
    if np.any(~(product > 0)):
        return None
    axis = channel_axis(layer)
    if layer.op.type == "conv2d_transpose":
        return None  # its channels are spread over groups
    others = tuple(a for a in range(array.ndim) if a != axis)
    products = 128 * np.abs(np.asarray(array, dtype=np.float64)).sum(axis=others)
    return np.asarray(np.abs(np.asarray(bias, dtype=np.float64).ravel()) / product + products)


def hard_swish(fused: Fused) -> Iterator[Finding]:
    """hard_swish is x * min(max(x + 3, 0), 6) / 6; driver/verisilicon_timvx/converter/hard_swish.cc stops at others."""
    wanted = {"threshold": 6.0, "scale": 6.0, "offset": 3.0}
    for step in fused.steps:
        if step.op.type != "hard_swish" or not step.in_scales:
            continue
        for name, value in wanted.items():
            found = step.op.attrs.get(name, value)
            if found != value:
                variable = step.op.first_output()
                yield _at("hard-swish", variable, step, f"{name} is {found}, integer kernels have {value}")


def integer_tensors(fused: Fused) -> Iterator[Finding]:
    """Indices and shapes have no scale: a pass would make int8 of them."""
    for step in fused.steps:
        for name in {*step.in_scales, *step.out_scales}:
            if not fused.is_float(name):
                variable = fused.program.variables[name]
                yield _at("integer-scale", name, step, f"a tensor of {variable.dtype} has a scale")


def same_scales(fused: Fused) -> Iterator[Finding]:
    """Operators that move data have one scale at input and output: kernels copy the integers.

    quantization_parameters_propagation_pass.cc, in_scale_same_as_out_scale_ops; older releases enforce it with
    restrict_quantized_op_with_same_input_output_scale_pass.
    """
    for step in fused.steps:
        if step.op.type not in _MOVES:
            continue
        inputs = [(name, step.in_scales.get(name)) for p in _DATA_IN for name in step.inputs.get(p, ())]
        outputs = [(name, step.out_scales.get(name)) for p in _DATA_OUT for name in step.outputs.get(p, ())]
        first = next((scale for _, scale in inputs if scale is not None), None)
        for name, scale in [*inputs, *outputs]:
            if first is None or scale is None or scale.shape != first.shape or np.allclose(scale, first, rtol=1e-6):
                continue
            found = f"its scale is {scale[0]:.6g}, that of the first input {first[0]:.6g}"
            yield _at("same-scale", name, step, found)


def _channels(fused: Fused, step: Step, name: str) -> int | None:
    """Output channels of a layer, if the variable is its weight; None for other constants."""
    if step.weight != name:
        return None
    shape = fused.parameters[name].shape
    axis = channel_axis(step)
    groups = step.op.attrs.get("groups", 1) if step.op.type == "conv2d_transpose" else 1
    return None if len(shape) <= axis else int(shape[axis]) * (groups if isinstance(groups, int) else 1)


def _is_bias(fused: Fused, step: Step, name: str) -> bool:
    """Whether the constant Y of an addition is put on the output of a layer, whose kernel then takes it."""
    if step.op.type != "elementwise_add" or name not in step.inputs.get("Y", ()) or not fused.is_constant(name):
        return False
    layer = fused.makers.get(step.inputs["X"][0])
    return layer is not None and layer.weight is not None and name not in step.in_scales


def _at(rule: str, variable: str, step: Step, message: str) -> Finding:
    return Finding(rule, variable, step.label, message)
