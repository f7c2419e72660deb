"""Which scale Paddle Lite gives each tensor of an int8 file: its passes, replayed on the operators of the program.

In their order (Paddle-Lite 3d329c954c, lite/core/optimizer/mir):
 1. fusion/quant_dequant_op_fuser.cc. quantize_linear with dequantize_linear on one Scale variable, and
    fake_quantize_dequantize_*, disappear: their readers read the tensor in front, with an input scale. fake_quantize_*
    the same; the fake_*dequantize_max_abs behind a layer gives the layer the scale of its weights. dequantize_linear of
    a persistable int8 tensor too. A reader whose output goes to quantize_linear takes that scale as its output scale.
 2. quantization_parameters_propagation_pass.cc (for NPUs): (a) an operator that has an input scale or a threshold takes
    the scale with which its output is read as output scale, (c) else its out_threshold / 127, (d) an input without a
    scale takes the output scale of the operator that makes it.
What is left over of the quantizers is not fused, and Paddle Lite then stops or computes in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fullquant.readers.program import PaddleOp, Program

Array = npt.NDArray[np.generic]
Scale = npt.NDArray[np.float32]

QMAX = np.float32(127)
LAYERS: Mapping[str, tuple[str, str]] = {
    "conv2d": ("Input", "Filter"), "depthwise_conv2d": ("Input", "Filter"), "conv2d_transpose": ("Input", "Filter"),
    "mul": ("X", "Y"), "matmul": ("X", "Y"), "matmul_v2": ("X", "Y"),
}  # fmt: skip
FAKE_QUANTIZE = frozenset({"fake_quantize_moving_average_abs_max", "fake_quantize_range_abs_max"})
FAKE_BOTH = frozenset({"fake_quantize_dequantize_moving_average_abs_max"})
FAKE_DEQUANTIZE = frozenset({"fake_channel_wise_dequantize_max_abs", "fake_dequantize_max_abs"})


@dataclass
class Step:
    """An operator that is left after the quantizers are gone, with the scales of its tensors.

    inputs, outputs: variables after the fusion. in_scales, out_scales: variable -> steps (one, or one per channel).
    """

    op: PaddleOp
    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]
    in_scales: dict[str, Scale] = field(default_factory=dict)
    out_scales: dict[str, Scale] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The operator's kind and its first output."""
        return f"{self.op.type} {self.op.first_output()!r}"

    @property
    def weight(self) -> str | None:
        """The variable of a layer's weights."""
        names = self.inputs.get(LAYERS[self.op.type][1], ()) if self.op.type in LAYERS else ()
        return names[0] if names else None

    def reads(self) -> list[str]:
        """All input variables."""
        return [name for names in self.inputs.values() for name in names]

    def writes(self) -> list[str]:
        """All output variables."""
        return [name for names in self.outputs.values() for name in names]


@dataclass
class Fused:
    """The program after the passes.

    steps: operators with scales. left: quantizers that no pattern took. makers: variable -> the step that writes it.
    scale_variables: weight -> the variables with its abs-max and its zero point.
    """

    program: Program
    parameters: Mapping[str, Array]
    steps: list[Step] = field(default_factory=list)
    left: list[PaddleOp] = field(default_factory=list)
    makers: dict[str, Step] = field(default_factory=dict)

    def is_float(self, name: str) -> bool:
        """Whether a variable holds real numbers (int8 weights included: they stand for such)."""
        variable = self.program.variables.get(name)
        return variable is None or variable.dtype in (np.float32, np.float16, np.int8)

    def is_constant(self, name: str) -> bool:
        """Whether the parameter file holds the variable."""
        return name in self.parameters


def fuse(program: Program, parameters: Mapping[str, Array]) -> Fused:
    """Replays the passes. Never fails: what a pass would reject is left over or lacks a scale."""
    return _Replay(program, parameters).run()


class _Replay:
    def __init__(self, program: Program, parameters: Mapping[str, Array]) -> None:
        self.result = Fused(program, parameters)
        self.parameters = parameters
        self.alias: dict[str, str] = {}  # variable behind a quantizer -> the one in front
        self.scale_at: dict[str, Scale] = {}  # variable behind a quantizer -> its step
        self.rounded_with: dict[str, Scale] = {}  # variable in front of a quantize_linear -> that step

    def run(self) -> Fused:
        ops = self.result.program.ops
        readers = _readers(ops)
        quantized: dict[str, PaddleOp] = {}
        for op in ops:
            if op.type == "quantize_linear":
                quantized[_first(op.outputs, "Y")] = op
            elif op.type == "dequantize_linear":
                self._dequantize_linear(op, quantized)
            elif op.type in FAKE_QUANTIZE | FAKE_BOTH:
                self._behind(op, _first(op.inputs, "X"), _first(op.outputs, "Out"), _first(op.inputs, "InScale"))
            elif op.type in FAKE_DEQUANTIZE:
                self._dequantize_product(op)
            else:
                self._keep(op)
        self.result.left += [op for name, op in quantized.items() if not self._was_fused(name, readers)]
        self._name_outputs()
        self._propagate()
        return self.result

    # --- fusing ----------------------------------------------------------------------------------------------------

    def _dequantize_linear(self, op: PaddleOp, quantized: Mapping[str, PaddleOp]) -> None:
        source, target, scale = _first(op.inputs, "X"), _first(op.outputs, "Y"), _first(op.inputs, "Scale")
        maker = quantized.get(source)
        if maker is not None and _first(maker.inputs, "Scale") == scale:
            front = _first(maker.inputs, "X")
            self._behind(op, front, target, scale)
            if target in self.scale_at:
                self.rounded_with[self._resolve(front)] = self.scale_at[target]
        elif source in self.parameters and op.inputs.get("ZeroPoint"):
            self._behind(op, source, target, scale)
        else:
            self.result.left.append(op)

    def _behind(self, op: PaddleOp, front: str, target: str, scale: str) -> None:
        """Readers of `target` read `front` from now on, with this scale."""
        absmax = self.parameters.get(scale)
        if absmax is None:
            self.result.left.append(op)
            return
        self.alias[target] = front
        self.scale_at[target] = np.asarray(absmax, dtype=np.float32).ravel() / QMAX

    def _dequantize_product(self, op: PaddleOp) -> None:
        """The operator behind a layer of the older form: the layer writes its output, its weights get their scale."""
        layer = self.result.makers.get(_first(op.inputs, "X"))
        if layer is None or layer.weight is None:
            self.result.left.append(op)
            return
        if op.type == "fake_dequantize_max_abs":
            limit = op.attrs.get("max_range")
            steps = np.asarray([QMAX / np.float32(limit)], np.float32) if isinstance(limit, float) and limit else None
        else:
            names = op.inputs.get("Scales", ())
            absmax = self.parameters.get(names[0]) if names else None
            steps = None if absmax is None else np.asarray(absmax, np.float32).ravel() / QMAX
        if steps is None:
            self.result.left.append(op)
            return
        layer.in_scales[layer.weight] = steps
        (product,), target = layer.writes(), _first(op.outputs, "Out")
        parameter = next(iter(layer.outputs))
        layer.outputs[parameter] = (target,)
        self.result.makers.pop(product)
        self.result.makers[target] = layer

    def _keep(self, op: PaddleOp) -> None:
        inputs = {p: tuple(self._resolve(n) for n in names) for p, names in op.inputs.items()}
        step = Step(op, inputs, {p: tuple(names) for p, names in op.outputs.items()})
        for names in op.inputs.values():
            for name in names:
                if name in self.scale_at:
                    step.in_scales[self._resolve(name)] = self.scale_at[name]
        self.result.steps.append(step)
        for name in step.writes():
            self.result.makers[name] = step

    def _resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _was_fused(self, name: str, readers: Mapping[str, Sequence[PaddleOp]]) -> bool:
        found = readers.get(name, ())
        return bool(found) and all(_first(op.outputs, "Y") in self.alias for op in found)

    def _name_outputs(self) -> None:
        """An operator with an input scale takes the scale of the quantize_linear behind it as its output scale."""
        for step in self.result.steps:
            for name in step.writes() if step.in_scales else ():
                if name in self.rounded_with:
                    step.out_scales[name] = self.rounded_with[name]
        for name in self.result.program.outputs:
            maker = self.result.makers.get(self._resolve(name))
            if maker is not None and name in self.scale_at and maker.in_scales:
                maker.out_scales.setdefault(self._resolve(name), self.scale_at[name])

    # --- propagation -----------------------------------------------------------------------------------------------

    def _propagate(self) -> None:
        steps, makers = self.result.steps, self.result.makers
        for step in steps:
            for name, scale in step.in_scales.items():
                maker = makers.get(name)
                if maker is not None and (maker.in_scales or _threshold(maker, name) is not None):
                    maker.out_scales[name] = scale
        for step in steps:
            for name in step.writes():
                threshold = _threshold(step, name)
                if name not in step.out_scales and threshold is not None:
                    step.out_scales[name] = np.asarray([threshold], np.float32) / QMAX
        for step in steps:
            for name in step.reads():
                maker = makers.get(name)
                if name not in step.in_scales and maker is not None and name in maker.out_scales:
                    step.in_scales[name] = maker.out_scales[name]


def _threshold(step: Step, name: str) -> float | None:
    """The abs-max that an operator states for an output: `out_threshold` for all, `Out0_threshold` for one."""
    for parameter, names in step.op.outputs.items():
        for index, _ in enumerate(names):
            written = step.outputs[parameter][index] == name
            value = step.op.attrs.get(f"{parameter}{index}_threshold") if written else None
            if isinstance(value, float):
                return value
    value = step.op.attrs.get("out_threshold")
    return value if isinstance(value, float) else None


def _readers(ops: Sequence[PaddleOp]) -> dict[str, list[PaddleOp]]:
    found: dict[str, list[PaddleOp]] = {}
    for op in ops:
        for names in op.inputs.values():
            for name in names:
                found.setdefault(name, []).append(op)
    return found


def _first(bound: Mapping[str, Sequence[str]], parameter: str) -> str:
    names = bound.get(parameter, ())
    return names[0] if names else ""
