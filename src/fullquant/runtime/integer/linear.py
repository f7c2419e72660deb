"""Conv, Gemm and MatMul: exact integer sums, then one requantization.

The products are added by float kernels, which is exact and fast: every partial sum is an integer, and a float32 holds
integers up to 2**24, a float64 up to 2**53. The bound is known before anything runs, sum |w| * max |x|; where it
exceeds 2**24 the input channels are cut into parts that stay below, whose sums are added as int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fullquant.errors import AccumulatorOverflowError, EngineError
from fullquant.graph.edit import attribute_float, attribute_int
from fullquant.numerics.integer import FixedPoint, fixed_point, overflow, requantize
from fullquant.numerics.qparams import FloatArray, IntArray
from fullquant.runtime.integer.tensors import (
    Array,
    IntegerTensor,
    Job,
    Kernel,
    Operand,
    RefusalError,
    storage,
    to_integer,
)
from fullquant.runtime.kernels.requantize import requantize_rows
from fullquant.runtime.torch_ops import build_operation

Tensor = torch.Tensor

EXACT_FLOAT32 = 2**24


def _centred(tensor: IntegerTensor) -> Tensor:
    """q - zero_point as float32, in the memory format of q."""
    x = torch.from_numpy(tensor.q).to(torch.float32)
    return x.sub_(tensor.zero_point) if tensor.zero_point else x


def parts(weight: IntArray, largest: int) -> list[slice]:
    """Slices of the input channels (axis 1 of weight (O, I, ...)) whose sums stay below 2**24 for |x| <= largest."""
    per_channel = np.abs(weight).reshape(*weight.shape[:2], -1).sum(axis=2) * largest  # (O, I)
    cuts, start, total = [], 0, np.zeros(weight.shape[0], dtype=np.int64)
    for channel in range(weight.shape[1]):
        if channel > start and (total + per_channel[:, channel]).max() >= EXACT_FLOAT32:
            cuts.append(slice(start, channel))
            start, total = channel, np.zeros_like(total)
        total += per_channel[:, channel]
    return [*cuts, slice(start, weight.shape[1])]


class _Requantizer:
    """Sums (R, O) to the output's integers, or to float where it has no grid."""

    def __init__(self, job: Job, scale: FloatArray, channels: int) -> None:
        """scale: scale_x * scale_w, () or (O,), float64."""
        self.job, self.name = job, str(job.node.name)
        self.scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), (channels,))
        self.bias = np.zeros(channels, np.int64) if job.bias is None else np.ascontiguousarray(job.bias)
        self.factor = None
        if job.out is not None:
            factor = fixed_point(self.scale / float(job.out.scale))
            self.factor = FixedPoint(np.array(factor.multiplier), np.array(factor.shift), factor.exact)

    def __call__(self, sums: Array, addend: FloatArray | None = None) -> Array:
        """addend: what is added to the sums, real numbers (R, O)."""
        if self.factor is None or self._ends_in_float or self.job.rounding != "nearest_even":
            return self._any(sums, addend)
        out = np.empty(sums.shape, dtype=storage(self.job.grid))
        factor = self.factor
        broken, beyond = requantize_rows(
            sums, self.bias, factor.multiplier, factor.shift, factor.exact, int(self.job.grid.zero_point),
            self.job.low, self.job.high, out,
        )  # fmt: skip
        self._check(broken, beyond)
        return out

    @property
    def _ends_in_float(self) -> bool:
        return self.job.function is not None or self.job.addend is not None

    def _any(self, sums: Array, addend: FloatArray | None) -> Array:
        total = sums.astype(np.int64)
        broken = 0 if sums.dtype == np.int64 else int(np.count_nonzero(total != sums))
        total = total + self.bias
        self._check(broken, overflow(total))
        if self.factor is None or self._ends_in_float:
            real = total * self.scale if addend is None else total * self.scale + addend
            return self._in_float(np.asarray(real.astype(np.float32)))
        return self.job.finish(requantize(total, self.factor, self.job.rounding))

    def _in_float(self, real: FloatArray) -> Array:
        """What is computed on the real sums, an addend among them: a function, or nothing, and the clamp; rounded where
        there is a grid."""
        if self.job.function is not None:
            real = self.job.function(torch.from_numpy(real)).numpy()
        real = np.clip(real, *np.asarray(self.job.bounds, np.float32))
        return real if self.job.out is None else to_integer(real, self.job.out).q

    def _check(self, broken: int, beyond: int) -> None:
        if broken:
            raise EngineError(f"node {self.name!r}: the library's sums are no integers; please report this processor")
        if beyond:
            raise AccumulatorOverflowError(
                f"node {self.name!r}: {beyond} sums do not fit into 32 bits; raise the scale of its weights or bias"
            )


def _weight(job: Job, axis: int) -> Operand:
    """The constant weight, whose scales may run along the axis of its outputs only."""
    weight = job.operands[1]
    if weight.constant is None:
        raise RefusalError("its weight is computed at run time")
    if weight.grid.spec.axis not in (None, axis) or not weight.grid.spec.symmetric:
        raise RefusalError("its weight has scales along another axis than that of its outputs, or zero points")
    return weight


def _scale(x: Operand, weight: Operand) -> FloatArray:
    """scale_x * scale_w, float64 and exact."""
    return np.asarray(x.scale * weight.grid.scale.astype(np.float64))


def convolution(job: Job) -> Kernel:
    """sum over channels and window of (q_x - z_x) q_w + q_b, requantized. Padding is q_x = z_x, the real 0."""
    x, weight = job.operands[0], _weight(job, 0)
    integers = weight.centred()
    groups = attribute_int(job.node, "group", 1)
    pieces = parts(integers, x.largest) if groups == 1 else [slice(None)]
    # Groups cannot be cut along the input channels; the few that are so large are added in float64.
    whole = int(np.abs(integers).reshape(len(integers), -1).sum(axis=1).max()) * x.largest
    wide = torch.float64 if groups > 1 and whole >= EXACT_FLOAT32 else torch.float32
    operation = build_operation(job.node)
    weights = [
        torch.from_numpy(integers[:, piece].copy()).to(wide).contiguous(memory_format=torch.channels_last)
        for piece in pieces
    ]
    requantizer = _Requantizer(job, _scale(x, weight), len(integers))

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        data = _centred(tensors[0]).to(wide).contiguous(memory_format=torch.channels_last)
        if len(pieces) == 1:
            sums = operation(data, weights[0])
        else:
            sums = _add([operation(data[:, piece], w) for piece, w in zip(pieces, weights, strict=True)])
        rows = sums.permute(0, 2, 3, 1).contiguous()
        addend = None if job.addend is None else tensors[-1].real().transpose(0, 2, 3, 1).reshape(-1, rows.shape[3])
        result = requantizer(rows.numpy().reshape(-1, rows.shape[3]), addend)
        return result.reshape(rows.shape).transpose(0, 3, 1, 2)

    return kernel


def _add(sums: Sequence[Tensor]) -> Tensor:
    total = sums[0].to(torch.int64)
    for other in sums[1:]:
        total += other.to(torch.int64)
    return total


def gemm(job: Job) -> Kernel:
    """x (N, K) times a constant weight (K, O), transposed or not, plus a bias."""
    node = job.node
    if attribute_int(node, "transA", 0) or any(attribute_float(node, a, 1.0) != 1.0 for a in ("alpha", "beta")):
        raise RefusalError("transA, alpha and beta have no integer form")
    return _product(job, bool(attribute_int(node, "transB", 0)))


def matmul(job: Job) -> Kernel:
    """x (..., K) times a constant weight (K, O); or two computed tensors, whose sums are float64 and exact."""
    if all(operand.constant is None for operand in job.operands):
        return _computed_product(job)
    if job.operands[0].constant is not None or job.operands[1].grid.zero_point.ndim > 1:
        raise RefusalError("its first operand is a constant")
    constant = job.operands[1].constant
    if constant is None or constant.ndim != 2:
        raise RefusalError("its weight has other than two axes")
    return _product(job, False)


def _product(job: Job, transposed: bool) -> Kernel:
    x, weight = job.operands[0], _weight(job, 0 if transposed else 1)
    integers = weight.centred() if transposed else weight.centred().T  # (O, K)
    pieces = parts(integers, x.largest)
    weights = [torch.from_numpy(np.ascontiguousarray(integers[:, p].T, dtype=np.float32)) for p in pieces]
    requantizer = _Requantizer(job, _scale(x, weight), len(integers))

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        data = _centred(tensors[0])
        products = [data[..., piece] @ w for piece, w in zip(pieces, weights, strict=True)]
        sums = products[0] if len(products) == 1 else _add(products)
        result = requantizer(sums.contiguous().numpy().reshape(-1, sums.shape[-1]))
        return result.reshape(sums.shape)

    return kernel


def _computed_product(job: Job) -> Kernel:
    first, second = job.operands
    scale = np.asarray(first.scale * second.scale)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        sums = _centred(tensors[0]).double() @ _centred(tensors[1]).double()
        columns = sums.shape[-1]
        result = _Requantizer(job, scale, columns)(sums.contiguous().numpy().reshape(-1, columns))
        return result.reshape(sums.shape)

    return kernel


LINEAR: dict[str, Callable[[Job], Kernel]] = {"Conv": convolution, "Gemm": gemm, "MatMul": matmul}
