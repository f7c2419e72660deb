"""Operators that work on each element: tables of 256 entries, and sums and products of two tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from fullquant.errors import EngineError
from fullquant.numerics import affine
from fullquant.numerics.integer import common_fixed_point, fixed_point, requantize, weighted_sum
from fullquant.numerics.qparams import FloatArray, QParams
from fullquant.runtime.integer.tensors import Array, IntegerTensor, Job, Kernel, Operand, RefusalError, storage
from fullquant.runtime.kernels.requantize import look_up, requantize_product, requantize_sum
from fullquant.runtime.torch_ops import build_operation

#: Operators whose output element depends on one element of each input.
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh",
    "Gelu", "Erf", "Mish", "Elu", "LeakyRelu", "PRelu", "Exp", "Sqrt", "Abs", "Neg", "Log", "Softplus", "Softsign",
    "Floor", "Reciprocal", "Ceil", "Round", "Sign", "Sin", "Cos",
})  # fmt: skip


def all_values(grid: QParams) -> FloatArray:
    """The real numbers of a grid, from qmin to qmax."""
    return affine.dequantize(np.arange(grid.spec.qmin, grid.spec.qmax + 1), grid)


def in_memory_order(q: Array) -> Array:
    """A contiguous (N, H, W, C) view, or copy, of an image tensor (N, C, H, W); of others the same axes, contiguous."""
    return np.ascontiguousarray(q.transpose(0, 2, 3, 1) if q.ndim == 4 else q)


def in_axis_order(rows: Array) -> Array:
    """The inverse of in_memory_order, as a view."""
    return rows.transpose(0, 3, 1, 2) if rows.ndim == 4 else rows


class Table:
    """A function of one integer: entry k is its value at qmin + k."""

    def __init__(self, entries: Array, known: Array, qmin: int, name: str) -> None:
        self._entries, self._qmin, self._name = entries, qmin, name
        self._known = None if known.all() else known

    def __call__(self, q: Array) -> Array:
        # int8 and uint8 both index a table of 256 entries by their bytes.
        rows = in_memory_order(q)
        index = rows.view(np.uint8).reshape(-1)
        if self._known is not None and not self._known[index].all():
            raise EngineError(f"node {self._name!r}: the function is not a number for some of its inputs")
        found = np.empty(index.shape, self._entries.dtype)
        look_up(self._entries, index, found)
        return in_axis_order(found.reshape(rows.shape))


def make_table(source: QParams, real: FloatArray, job: Job) -> Table:
    """The table of a function whose values at `all_values(source)` are `real`."""
    known = ~np.isnan(real)
    entries = affine.quantize(np.where(known, real, 0), job.grid).clip(job.low, job.high).astype(storage(job.grid))
    # By bytes: a signed grid's negative numbers lie in the upper half.
    place = (np.arange(source.spec.qmin, source.spec.qmax + 1) % 256).astype(np.intp)
    by_byte, known_by_byte = np.zeros(256, entries.dtype), np.ones(256, dtype=bool)
    by_byte[place], known_by_byte[place] = entries, known
    return Table(by_byte, known_by_byte, source.spec.qmin, str(job.node.name))


def unary(job: Job) -> Kernel:
    """f(x) as a table of 256 entries, each the float32 result of the operator, rounded to the output's grid.

    One operand is computed; the others are constants of one element.
    """
    operation = build_operation(job.node)
    position = next(i for i, operand in enumerate(job.operands) if operand.constant is None)
    x = job.operands[position]
    values = all_values(x.grid)
    arguments = [
        values if o.constant is None else affine.dequantize(o.constant, o.grid).reshape(1) for o in job.operands
    ]
    table = make_table(x.grid, operation(*map(torch.from_numpy, arguments)).numpy(), job)
    return lambda tensors: table(tensors[0].q)


def is_unary(job: Job) -> bool:
    """One computed operand, and nothing else or constants of one element."""
    computed = [o for o in job.operands if o.constant is None]
    return len(computed) == 1 and all(o.constant is None or o.constant.size == 1 for o in job.operands)


def _integers(operand: Operand, tensors: list[IntegerTensor]) -> Array:
    """q - zero_point of the next computed operand, or of a constant."""
    return tensors.pop(0).centred() if operand.constant is None else operand.centred()


def add(job: Job) -> Kernel:
    """round((s_a (q_a - z_a) +- s_b (q_b - z_b)) / s_y), each term times a multiplier, one rounding."""
    sign = -1.0 if job.node.op_type == "Sub" else 1.0
    first, second = job.operands
    factors = (first.scale / job.scale_out, sign * second.scale / job.scale_out)
    (m_first, m_second), shift = common_fixed_point(factors)
    exact = all(m == f * 2.0**shift for m, f in zip((m_first, m_second), factors, strict=True))

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        if job.rounding == "nearest_even" and len(tensors) == 2 and tensors[0].q.shape == tensors[1].q.shape:
            rows = [in_memory_order(t.q) for t in tensors]
            out = np.empty(rows[0].shape, storage(job.grid))
            requantize_sum(
                ((rows[0].reshape(-1), tensors[0].zero_point), (rows[1].reshape(-1), tensors[1].zero_point)),
                (m_first, m_second), shift, exact, int(job.grid.zero_point), job.low, job.high, out.reshape(-1),
            )  # fmt: skip
            return in_axis_order(out)
        left = list(tensors)
        terms = [(_integers(o, left), factor) for o, factor in zip(job.operands, factors, strict=True)]
        return job.finish(weighted_sum(terms, job.rounding))

    return kernel


def multiply(job: Job) -> Kernel:
    """round((q_a - z_a) (q_b - z_b) s_a s_b / s_y): products of 16 bits, requantized."""
    first, second = job.operands
    factor = fixed_point(first.scale * second.scale / job.scale_out)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        if job.rounding == "nearest_even" and len(tensors) == 2 and (pair := _image_and_factor(tensors)) is not None:
            x, y = pair
            rows, others = (in_memory_order(t.q) for t in pair)
            out = np.empty(rows.shape, storage(job.grid))
            images, channels = rows.shape[0], rows.shape[3]
            requantize_product(
                rows.reshape(images, -1, channels), x.zero_point, others.reshape(images, -1, channels), y.zero_point,
                int(factor.multiplier), int(factor.shift), factor.exact, int(job.grid.zero_point), job.low, job.high,
                out.reshape(images, -1, channels),
            )  # fmt: skip
            return in_axis_order(out)
        left = list(tensors)
        product = _integers(first, left) * _integers(second, left)
        return job.finish(requantize(product, factor, job.rounding))

    return kernel


def _image_and_factor(tensors: Sequence[IntegerTensor]) -> tuple[IntegerTensor, IntegerTensor] | None:
    """The two as (N, C, H, W) and the same, or (N, C, 1, 1), in this order; None for other shapes."""
    first, second = tensors
    for x, y in ((first, second), (second, first)):
        if x.q.ndim == 4 and y.q.shape in (x.q.shape, (*x.q.shape[:2], 1, 1)):
            return x, y
    return None


def extremum(job: Job) -> Kernel:
    """Max or Min: rounding is monotone, so each operand is brought to the output's grid by a table, then compared."""
    pair = np.maximum if job.node.op_type == "Max" else np.minimum
    tables = [make_table(o.grid, all_values(o.grid), job) for o in job.operands]

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        left = list(tensors)
        found: Array | None = None
        for operand, table in zip(job.operands, tables, strict=True):
            q = left.pop(0).q if operand.constant is None else operand.constant.astype(storage(operand.grid))
            found = table(q) if found is None else pair(found, table(q))
        assert found is not None
        return found

    return kernel


def binary_table(job: Job) -> Kernel:
    """Any function of two integers, as a table of 256 * 256 entries: Div and Pow of two tensors."""
    if len(job.operands) != 2:
        raise RefusalError(f"{job.node.op_type} of {len(job.operands)} tensors has no integer form")
    first, second = job.operands
    operation = build_operation(job.node)
    a, b = (torch.from_numpy(all_values(o.grid)) for o in job.operands)
    real = operation(a[:, None].expand(-1, len(b)), b[None, :].expand(len(a), -1)).numpy()
    known = ~np.isnan(real)
    entries = affine.quantize(np.where(known, real, 0), job.grid).clip(job.low, job.high).astype(storage(job.grid))
    name = str(job.node.name)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        left = list(tensors)
        index = []
        for operand in (first, second):
            q = left.pop(0).q if operand.constant is None else operand.constant
            index.append(q.astype(np.intp) - operand.grid.spec.qmin)
        where = np.broadcast_arrays(*index)
        if not known[tuple(where)].all():
            raise EngineError(f"node {name!r}: the function is not a number for some of its inputs")
        return np.asarray(entries[tuple(where)])

    return kernel


def prelu(job: Job) -> Kernel:
    """x above 0, slope * x below: two factors, the second with the integer slope."""
    x, slope = job.operands
    if slope.constant is None:
        raise RefusalError("its slope is computed at run time")
    above = fixed_point(x.scale / job.scale_out)
    below = fixed_point(x.scale * slope.scale / job.scale_out)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        value = tensors[0].centred()
        under = requantize(value * slope.centred(), below, job.rounding)
        return job.finish(np.where(value > 0, requantize(value, above, job.rounding), under))

    return kernel


_BINARY: Mapping[str, Callable[[Job], Kernel]] = {
    "Add": add, "Sub": add, "Mul": multiply, "Max": extremum, "Min": extremum, "PRelu": prelu,
}  # fmt: skip


def elementwise(job: Job) -> Kernel:
    """The kernel of any operator in ELEMENTWISE."""
    if any(o.grid.spec.axis is not None for o in job.operands):
        raise RefusalError("an operand has a scale per channel")
    if is_unary(job):
        return unary(job)
    if job.node.op_type in _BINARY and len(job.operands) >= 2:
        if job.node.op_type not in ("Max", "Min") and len(job.operands) != 2:
            raise RefusalError(f"{job.node.op_type} of {len(job.operands)} tensors has no integer form")
        return _BINARY[job.node.op_type](job)
    return binary_table(job)
