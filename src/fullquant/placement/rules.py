"""What a target's table states: a rule per operator, the grids, and where the facts come from. The data: `tables`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fullquant.numerics.qparams import QuantSpec

# compute: reads int8, writes int8 with a scale of its own.  move: copies values, so input and output share one scale.
# clamp: ReLU and Clip; fused into the operator in front where the target can, else like move.
Role = Literal["compute", "move", "clamp"]
# int8: integers in, integers out. float: the runtime dequantizes, computes in float32 and quantizes again.
Kernel = Literal["int8", "float"]
Granularity = Literal["per_channel", "per_tensor"]
# int32: the runtime adds round(b / (scale_x * scale_w)) to its accumulators. float32: it adds b after them.
BiasRule = Literal["int32", "float32"]
# Which form of ONNX file the runtime fuses: the keys of writers.onnx_qdq.LAYOUTS.
OnnxLayout = Literal["onnxruntime", "openvino", "tensorrt"]

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class OperatorRule:
    """How a target computes one ONNX operator.

    role: whose scale the output has: its own, or that of the inputs.
    kernel: whether the arithmetic is in integers. Tensors around a float kernel are int8 all the same.
    weights: the finest granularity that constant weights may have; None for operators without weights.
    """

    role: Role
    kernel: Kernel
    weights: Granularity | None = None


@dataclass(frozen=True)
class Source:
    """A fact that the table rests on, and where it was read."""

    fact: str
    where: str

    def __post_init__(self) -> None:
        if not (self.fact and self.where):
            raise ValueError("a source has a fact and a place")


@dataclass(frozen=True)
class Target:
    """One runtime or chip.

    title: its name for people.
    activation: the grid of activations, one scale per tensor. weight: the grid of weights, its axis left open.
    non_negative: the grid of activations that cannot be below 0, such as a ReLU's; None: that of the others.
    rules: ONNX operator -> rule; an operator that is absent cannot be placed.
    fuses_activation: operators that take a following ReLU or Clip into their kernel: one rounding, after the clamp.
    fused_functions: operators that Conv and Gemm take into their kernel as well, computed in float on the accumulator;
        function_layers: the layers that do so.
    keeps_scale: operators with a kernel of their own whose output has the scale of their input all the same.
    fused_sums: whether a Conv takes the Add behind it into its kernel: the sum is computed on the accumulator.
        sums_of_any: whatever the other operand, and behind a clamp or a function too; else as `joined_sums` tells.
    rounds_floats: whether what float kernels make and float kernels read is rounded in between.
    requantizes_weights: whether the runtime rounds weights again, to max|w| / 127 of each output channel.
    free_results: operators whose output has any scale where others have short ones: the kernel multiplies by inverses
        of scales, so that half-way values, which short scales have, go to one side.
    clamps_by_clip: whether ReLU and ReLU6 are written as Paddle's clip: the runtime gives a relu's output another grid.
    bias: how the bias of a layer is added. The placement puts it on the int32 grid in both cases.
    writes_paddle: whether the Paddle format can express the placement (it has no zero point).
    onnx_layout: the form of the ONNX file.
    sources: where the facts come from.
    """

    name: str
    title: str
    activation: QuantSpec
    weight: QuantSpec
    rules: Mapping[str, OperatorRule]
    fuses_activation: frozenset[str]
    bias: BiasRule
    writes_paddle: bool
    onnx_layout: OnnxLayout
    sources: tuple[Source, ...]
    non_negative: QuantSpec | None = None
    fused_functions: frozenset[str] = frozenset()
    function_layers: frozenset[str] = frozenset({"Conv", "Gemm"})
    keeps_scale: frozenset[str] = frozenset()
    fused_sums: bool = False
    sums_of_any: bool = False
    rounds_floats: bool = True
    requantizes_weights: bool = False
    free_results: frozenset[str] = frozenset()
    clamps_by_clip: bool = False

    def __post_init__(self) -> None:
        if any(
            spec is not None and spec.axis is not None for spec in (self.activation, self.weight, self.non_negative)
        ):
            raise ValueError(f"target {self.name!r}: the grids of a table have no axis")
        if self.non_negative is not None and self.non_negative.qmin != 0:
            raise ValueError(f"target {self.name!r}: the grid of what is not below 0 begins at 0")
        if not self.weight.symmetric:
            raise ValueError(f"target {self.name!r}: weights are symmetric")
        if self.writes_paddle and not (self.activation.symmetric and self.non_negative is None):
            raise ValueError(f"target {self.name!r}: the Paddle format has no zero point")
        for operator, rule in self.rules.items():
            if (rule.weights is not None) != (operator in LAYERS):
                raise ValueError(f"target {self.name!r}: {operator} states a granularity of weights, or lacks it")
            if operator in self.fuses_activation and rule.role != "compute":
                raise ValueError(f"target {self.name!r}: {operator} cannot fuse an activation, it is a {rule.role}")
        for operator in self.fused_functions:
            if self.role(operator) != "compute":
                raise ValueError(f"target {self.name!r}: {operator} is no function that a layer could compute")
        if not self.sources:
            raise ValueError(f"target {self.name!r} names no sources")

    def role(self, operator: str) -> Role | None:
        """The role of an operator, None where it has no rule."""
        rule = self.rules.get(operator)
        return None if rule is None else rule.role

    def kernel(self, operator: str) -> Kernel | None:
        """What an operator is computed in, None where it has no rule."""
        rule = self.rules.get(operator)
        return None if rule is None else rule.kernel


def rules_of(
    roles: Mapping[str, Role], int8: frozenset[str], weights: Mapping[str, Granularity]
) -> Mapping[str, OperatorRule]:
    """The rules of a target: its roles, the operators that have integer kernels, the granularity of weights.

    Raises ValueError where `int8` or `weights` name an operator without a role.
    """
    unknown = (int8 | set(weights)) - set(roles)
    if unknown:
        raise ValueError(f"no role for {', '.join(sorted(unknown))}")
    kernels: Mapping[str, Kernel] = {name: "int8" if name in int8 else "float" for name in roles}
    return MappingProxyType(
        {name: OperatorRule(role, kernels[name], weights.get(name)) for name, role in roles.items()}
    )
