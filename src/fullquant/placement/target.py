"""What each target computes in integers, as tables. Adding an operator changes data here, not control flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from fullquant.errors import ConfigError
from fullquant.numerics.qparams import QuantSpec

# compute: reads int8, writes int8 with a scale of its own.  move: copies values, so input and output share one scale.
# clamp: ReLU and Clip; fused into the operator in front where the target can, else like move.
Role = Literal["compute", "move", "clamp"]

_COMPUTE = [
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "Pow",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "LogSoftmax",
    "Gelu",
    "Erf",
    "Mish",
    "Elu",
    "LeakyRelu",
    "PRelu",
    "Exp",
    "Sqrt",
    "GlobalAveragePool",
    "AveragePool",
    "ReduceMean",
    "ReduceSum",
    "BatchNormalization",
    "LayerNormalization",
    "Resize",
]
_MOVE = [
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Pad",
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMax",
    "Identity",
    "Split",
    "Gather",
    "Expand",
    "Tile",
    "Concat",
    "DepthToSpace",
]
_CLAMP = ("Relu", "Clip")

_ROLES: Mapping[str, Role] = MappingProxyType(
    {**dict.fromkeys(_COMPUTE, "compute"), **dict.fromkeys(_MOVE, "move"), **dict.fromkeys(_CLAMP, "clamp")}
)
_FUSES = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div"})

# Paddle's quantize_linear clips to [-128, 127] and rounds half to even; ONNX QuantizeLinear does the same.
_INT8_SYMMETRIC = QuantSpec(-128, 127)
_UINT8_AFFINE = QuantSpec(0, 255, symmetric=False)


@dataclass(frozen=True)
class Target:
    """One runtime or chip.

    roles: ONNX operator -> Role; an operator that is absent has no integer kernel there.
    fuses_activation: operators that take a following ReLU or Clip into their kernel.
    activation: the grid of activations.
    writes_paddle: whether the Paddle format can express the placement (it has no zero point).
    """

    name: str
    activation: QuantSpec
    writes_paddle: bool
    roles: Mapping[str, Role] = field(default_factory=lambda: _ROLES)
    fuses_activation: frozenset[str] = _FUSES


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("paddle_lite", _INT8_SYMMETRIC, True),
            Target("verisilicon_timvx", _INT8_SYMMETRIC, True),
            Target("paddle_inference", _INT8_SYMMETRIC, True),
            Target("tensorrt", _INT8_SYMMETRIC, True),
            Target("onnxruntime", _UINT8_AFFINE, False),
            Target("openvino", _UINT8_AFFINE, False),
        )
    }
)


def find_target(name: str) -> Target:
    """The table of a target; ConfigError with the known names where there is none."""
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; known targets: {', '.join(TARGETS)}")
    return TARGETS[name]
