"""Integer tensors, and what a kernel is told about the node that it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.numerics import affine
from fullquant.numerics.integer import Rounding
from fullquant.numerics.qparams import FloatArray, IntArray, QParams
from fullquant.runtime.torch_rules import Operation

Array: TypeAlias = npt.NDArray[Any]


class RefusalError(Exception):
    """A node that has no integer kernel as it stands; the text says why. It is then computed in float."""


def storage(grid: QParams) -> np.dtype[Any]:
    """int8, or uint8 for a grid from 0 on."""
    return np.dtype(np.uint8) if grid.spec.qmin >= 0 else np.dtype(np.int8)


@dataclass(frozen=True, eq=False)
class IntegerTensor:
    """q: int8 or uint8; real = scale * (q - zero_point) with one scale."""

    q: Array
    grid: QParams

    @property
    def zero_point(self) -> int:
        return int(self.grid.zero_point)

    def centred(self) -> IntArray:
        """q - zero_point, int64."""
        return self.q.astype(np.int64) - self.zero_point

    def real(self) -> FloatArray:
        """The numbers that the integers stand for, float32."""
        steps = self.q.astype(np.float32)
        if self.zero_point:
            steps -= np.float32(self.zero_point)
        return np.asarray(steps * self.grid.scale, dtype=np.float32)


def to_integer(real: Array, grid: QParams) -> IntegerTensor:
    """Quantized as numerics.affine.quantize does it."""
    return IntegerTensor(affine.quantize(real, grid).astype(storage(grid)), grid)


@dataclass(frozen=True, eq=False)
class Operand:
    """An input of a node: an integer tensor that is computed, or (constant) integers of a placed initializer."""

    name: str
    grid: QParams
    constant: IntArray | None = None

    @property
    def scale(self) -> float:
        """The scale of a per_tensor grid."""
        return float(self.grid.scale)

    @property
    def largest(self) -> int:
        """The largest |q - zero_point| that the grid allows."""
        zero = int(self.grid.zero_point) if self.grid.zero_point.ndim == 0 else 0
        return max(self.grid.spec.qmax - zero, zero - self.grid.spec.qmin)

    def centred(self) -> IntArray:
        """q - zero_point of a constant, int64."""
        assert self.constant is not None
        return self.constant - self.grid.zero_point if self.grid.spec.axis is None else self.constant


@dataclass(frozen=True, eq=False)
class Job:
    """What a kernel computes: a node, with the addition of a bias and the clamp that are fused behind it.

    operands: the inputs that take part in the arithmetic, in order. out: the grid of the result, None where a layer's
    result stays float. bounds: of the fused clamp, real. low, high: the integers that the clamp and the grid leave.
    bias: int32 integers, (O,). function: what a target's layer computes in float on its sums, before it rounds.
    addend: the tensor that a convolution adds to its sums, in float as well; its kernel gets it last.
    """

    node: ir.Node
    operands: Sequence[Operand]
    out: QParams | None
    bounds: tuple[float, float]
    low: int
    high: int
    bias: IntArray | None
    rounding: Rounding
    function: Operation | None = None
    addend: Operand | None = None

    @property
    def grid(self) -> QParams:
        """The grid of a result that is placed."""
        if self.out is None:
            raise RefusalError("its output stays float")
        return self.out

    @property
    def scale_out(self) -> float:
        return float(self.grid.scale)

    def finish(self, steps: IntArray) -> Array:
        """Adds the zero point, clips, stores."""
        zero = int(self.grid.zero_point)
        return np.asarray(np.clip(steps + zero, self.low, self.high).astype(storage(self.grid)))


#: The computed operands, in order -> the stored integers (float32 where Job.out is None), or one array per output.
Kernel = Callable[[Sequence[IntegerTensor]], "Array | Sequence[Array]"]
Builder = Callable[[Job], Kernel]
