"""An int8 Paddle program in a form that Paddle Lite's x86 interpreter computes as the file says.

The interpreter takes quantizers out of a program and rounds only where an int8 kernel reads; its int8 kernels have
faults of their own (docs/decisions/0015). Here the roundings become operators that it has and keeps:

    clip(x, -128 s, 127 s) -> (x / s + c) -> (x - c) -> x * s,      c = 1.5 * 2**23

Adding c to a number below 2**22 in float32 rounds it half to even, as quantize_linear does. Weights become float32 on
their grid, or stay int8 with their dequantize_linear for the int8 kernels of convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fullquant.errors import EngineError
from fullquant.formats.framework_pb2 import AttrType, BlockDesc, OpDesc, ProgramDesc, VarDesc, VarType
from fullquant.numerics.qparams import scale_from_paddle
from fullquant.runtime.paddle_lite.source import argument

Array = npt.NDArray[np.generic]

CONVOLUTIONS = frozenset({"conv2d", "depthwise_conv2d"})
#: Passes that would join or drop the operators of a rounding, or join an activation that the int8 kernels leave out.
KEPT_APART = (
    "lite_scales_fuse_pass", "remove_scale1_pass", "identity_scale_eliminate_pass", "lite_elementwise_scale_fuse_pass",
    "lite_conv_scale_fuse_pass", "lite_scale_activation_fuse_pass", "lite_scaleacts_fuse_pass",
)  # fmt: skip
ACTIVATION_PASS = "lite_conv_activation_fuse_pass"

_ROUNDS = 1.5 * 2.0**23
_CLAMPS = frozenset({"relu", "relu6", "elementwise_add"})


def interpreter_form(
    desc: ProgramDesc, parameters: Mapping[str, Array], *, int8_layers: bool
) -> tuple[ProgramDesc, Mapping[str, Array]]:
    """The program and its parameters with roundings as operators; what is given is not changed.

    int8_layers: convolutions keep their quantizers and int8 weights, so that Lite picks its int8 kernels for them; what
        is between them is rounded by operators. False: no quantizers are left, every kernel is a float one.
    Raises EngineError for the older form of int8 file, whose tensors have scales but no roundings.
    """
    if any(op.type.startswith("fake_") for op in desc.blocks[0].ops):
        raise EngineError(
            "engine 'paddle_lite' runs int8 files with quantize_linear (onnx_format: true); "
            "this one has fake_quantize operators, write it in that form too"
        )
    form = _Form(desc.blocks[0], dict(parameters), int8_layers)
    return form.rewritten(desc)


@dataclass
class _Form:
    """One rewriting of a block. renamed: a dequantized tensor -> what others than convolutions read in its place."""

    block: BlockDesc
    parameters: dict[str, Array]
    int8_layers: bool
    operators: list[OpDesc] = field(default_factory=list)
    added: list[VarDesc] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.variables = {var.name: var for var in self.block.vars}
        self.readers: dict[str, list[OpDesc]] = {}
        for op in self.block.ops:
            for var in op.inputs:
                for name in var.arguments:
                    self.readers.setdefault(name, []).append(op)

    def rewritten(self, desc: ProgramDesc) -> tuple[ProgramDesc, Mapping[str, Array]]:
        for op in self.block.ops:
            self._rewrite(op)
        used = {n for op in self.operators for var in (*op.inputs, *op.outputs) for n in var.arguments} | {
            "feed",
            "fetch",
        }
        result = ProgramDesc()
        result.CopyFrom(desc)
        block = result.blocks[0]
        del block.ops[:], block.vars[:]
        block.ops.extend(self.operators)
        block.vars.extend(var for var in (*self.variables.values(), *self.added) if var.name in used)
        return result, {name: array for name, array in self.parameters.items() if name in used}

    def _rewrite(self, op: OpDesc) -> None:
        if op.type == "dequantize_linear" and argument(op, "X") in self.parameters:
            self._weight(op)
        elif op.type == "quantize_linear":
            self._rounding(op)
        elif op.type == "dequantize_linear":
            if self._is_kept(argument(op, "Y")):
                self.operators.append(_copied(op))
        else:
            self._other(op)

    def _is_kept(self, dequantized: str) -> bool:
        """Whether a layer that is to run in int8 reads it."""
        return any(self._is_int8(op) for op in self.readers.get(dequantized, []))

    def _is_int8(self, op: OpDesc) -> bool:
        """Convolutions, but not those in groups without a bias, whose int8 kernel reads memory that is not there."""
        if not self.int8_layers or op.type not in CONVOLUTIONS:
            return False
        readers = self.readers.get(argument(op, "Output"), [])
        biased = any(o.type == "elementwise_add" and argument(o, "Y") in self.parameters for o in readers)
        return biased or next((a.i for a in op.attrs if a.name == "groups"), 1) == 1

    def _weight(self, op: OpDesc) -> None:
        stored, result = argument(op, "X"), argument(op, "Y")
        if self._is_kept(result):
            self.operators.append(_copied(op))
            return
        weight = self.parameters[stored]
        step = scale_from_paddle(self.parameters[argument(op, "Scale")])
        axis = next((a.i for a in op.attrs if a.name == "quant_axis"), -1)
        if step.size > 1:
            step = step.reshape([-1 if a == axis % weight.ndim else 1 for a in range(weight.ndim)])
        self.parameters[result] = np.asarray(weight.astype(np.float32) * step, dtype=np.float32)
        variable = self._variable(result, result)
        variable.persistable = True
        tensor = variable.type.dense_tensor.tensor
        tensor.data_type = VarType.FP32
        del tensor.dims[:]
        tensor.dims.extend(weight.shape)
        self.variables[result] = variable

    def _rounding(self, op: OpDesc) -> None:
        """The roundings of a quantize_linear and its dequantize_linear; the pair stays where a convolution reads it."""
        quantized = argument(op, "Y")
        dequantized = next(
            (argument(o, "Y") for o in self.readers.get(quantized, []) if o.type == "dequantize_linear"), ""
        )
        if not dequantized:
            raise EngineError(
                f"engine 'paddle_lite': {quantized!r} is quantized but never dequantized; write the file again"
            )
        others = [o for o in self.readers.get(dequantized, []) if not self._is_int8(o)]
        source = argument(op, "X")
        if others:
            rounded = f"{dequantized}.rounded" if self._is_kept(dequantized) else dequantized
            absmax = np.float32(self.parameters[argument(op, "Scale")].reshape(-1)[0])
            self.operators += self._steps(source, rounded, absmax)
            source = self.renamed[dequantized] = rounded
        if self._is_kept(dequantized):
            kept = _copied(op)
            for var in kept.inputs:
                if var.parameter == "X":
                    var.arguments[:] = [source]
            self.operators.append(kept)

    def _steps(self, source: str, result: str, absmax: np.float32) -> Iterator[OpDesc]:
        step, inverse = absmax / np.float32(127), np.float32(127) / absmax
        names = [source, f"{result}.clipped", f"{result}.shifted", f"{result}.integer", result]
        for name in names[1:]:
            if name not in self.variables:
                self.added.append(self._variable(name, source))
        yield _unary("clip", names[0], names[1], min=float(-128 * step), max=float(127 * step))
        for index, (factor, bias) in enumerate(
            ((float(inverse), _ROUNDS), (1.0, -_ROUNDS), (float(step), 0.0)), start=1
        ):
            scaled = _unary("scale", names[index], names[index + 1], scale=factor, bias=bias)
            scaled.attrs.add(name="bias_after_scale", type=AttrType.BOOLEAN, b=True)
            yield scaled

    def _other(self, op: OpDesc) -> None:
        copy = _copied(op)
        if not self._is_int8(op):
            for var in copy.inputs:
                var.arguments[:] = [self.renamed.get(name, name) for name in var.arguments]
        # a scale on an operator that runs in float would make Lite convert its tensors
        if not self.int8_layers or not (self._is_int8(op) or op.type in _CLAMPS):
            kept = [a for a in copy.attrs if not a.name.endswith("threshold") or a.name == "threshold"]
            del copy.attrs[:]
            copy.attrs.extend(kept)
        self.operators.append(copy)

    def _variable(self, name: str, like: str) -> VarDesc:
        variable = VarDesc()
        variable.CopyFrom(self.variables[like])
        variable.name = name
        variable.persistable = False
        return variable


def _copied(op: OpDesc) -> OpDesc:
    copy = OpDesc()
    copy.CopyFrom(op)
    return copy


def _unary(kind: str, source: str, result: str, **floats: float) -> OpDesc:
    op = OpDesc(type=kind)
    op.inputs.add(parameter="X", arguments=[source])
    op.outputs.add(parameter="Out", arguments=[result])
    for name, value in floats.items():
        op.attrs.add(name=name, type=AttrType.FLOAT, f=value)
    return op
