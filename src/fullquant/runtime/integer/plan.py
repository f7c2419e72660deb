"""From a placed graph to steps: which nodes are computed with integers, by which kernel; which in float, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from fullquant.errors import AccumulatorOverflowError, ModelError
from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import constant_value, value_name
from fullquant.numerics import affine
from fullquant.numerics.integer import INT32_MAX, Rounding
from fullquant.numerics.qparams import FloatArray, IntArray, QParams, QuantSpec
from fullquant.placement.decision import Decision, Placement
from fullquant.runtime.integer.elementwise import ELEMENTWISE, elementwise
from fullquant.runtime.integer.functions import batch_norm, layer_norm, softmax
from fullquant.runtime.integer.linear import LINEAR
from fullquant.runtime.integer.moves import MOVES, move
from fullquant.runtime.integer.pooling import average_pool, reduce
from fullquant.runtime.integer.tensors import Array, Builder, IntegerTensor, Job, Kernel, Operand, RefusalError
from fullquant.runtime.torch_ops import build_operation

_BUILDERS: Mapping[str, Builder] = {
    **LINEAR,
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean", "ReduceSum"), reduce),
    "AveragePool": average_pool, "Softmax": softmax, "LogSoftmax": softmax,
    "LayerNormalization": layer_norm, "BatchNormalization": batch_norm,
}  # fmt: skip
# Inputs that are parameters of the kernel: they stay float in a placement and are not operands.
_PARAMETERS = {"BatchNormalization": (1, 2, 3, 4), "LayerNormalization": (1, 2)}
_SHAPES = frozenset({
    "Reshape", "Slice", "Pad", "Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "Clip", "Resize", "ReduceMean",
    "ReduceSum", "ReduceMax", "ReduceMin",
})  # fmt: skip


@dataclass(frozen=True)
class Read:
    """A computed tensor that a step reads, as integers or as floats."""

    tensor: str
    integer: bool


@dataclass
class Step:
    """One node, or a layer with what is fused behind it.

    run: gets an IntegerTensor or a float array for each of `reads`; returns an array for each of `outputs`: stored
    integers if `integer`, floats otherwise. why: the reason where a part of the arithmetic, or the result, is float.
    free: tensors that nothing reads after this step.
    """

    node: ir.Node
    reads: Sequence[Read]
    outputs: Sequence[str]
    run: Callable[[Sequence[IntegerTensor | Array]], Sequence[Array]]
    integer: bool
    why: str = ""
    free: list[str] = field(default_factory=list)


class Planner:
    """Steps of one graph, in order of computation."""

    def __init__(
        self, graph: ir.Graph, placement: Placement, qparams: Mapping[str, QParams], rounding: Rounding
    ) -> None:
        self.graph, self.placement, self.qparams, self.rounding = graph, placement, qparams, rounding
        self._taken: set[str] = set()  # nodes that are part of an earlier step

    def steps(self) -> list[Step]:
        """One step for each node that no other step contains."""
        found = []
        waiting: dict[str, ir.Node] = {}  # sum -> the convolution that computes it, once both operands are there
        for node in self.graph:
            name = str(node.name)
            if name in self._taken:
                continue
            later = self._sum_of(node)
            if later is not None:
                waiting[str(later.name)] = node
                continue
            if name in waiting:
                found.append(self._step(waiting.pop(name)))
            if name not in self._taken:
                found.append(self._step(node))
        seen = {str(value.name) for value in self.graph.outputs}
        for step in reversed(found):
            step.free = sorted({r.tensor for r in step.reads} - seen)
            seen.update(r.tensor for r in step.reads)
        return found

    # ---- what a tensor is --------------------------------------------------------------------------------------

    def decision(self, tensor: str) -> Decision | None:
        """The decision of a placed tensor that has integers of its own; None for floats, and inside fused kernels."""
        found = self.placement.get(tensor)
        return None if found is None or found.spec is None or found.fused or found.kind == "bias" else found

    def grid(self, tensor: str) -> QParams:
        """The grid of a placed tensor."""
        owner = self.placement.scale_owner(tensor)
        if owner not in self.qparams:
            raise ModelError(f"tensor {owner!r} is placed in integers but has no scale: calibrate it first")
        return self.qparams[owner]

    def reads_integers(self, tensor: str, node: ir.Node) -> bool:
        """Whether the node reads the rounded tensor."""
        decision = self.decision(tensor)
        return decision is not None and (decision.consumers is None or str(node.name) in decision.consumers)

    # ---- steps -------------------------------------------------------------------------------------------------

    def _step(self, node: ir.Node) -> Step:
        try:
            return self._integer(node)
        except RefusalError as refusal:
            return self._float(node, str(refusal))

    def _integer(self, node: ir.Node) -> Step:
        builder = _BUILDERS.get(node.op_type)
        if builder is None:
            raise RefusalError(f"there is no integer kernel for {node.op_type}")
        reads, operands, extra = self._operands(node)
        if not reads:
            raise RefusalError("it reads constants only")
        last, bounds, bias, function, addend = self._fused(node)
        reads += [] if addend is None else [Read(addend.name, True)]
        outputs = [value_name(v) for v in last.outputs if v.name]
        out = self._out(node, outputs)
        low, high = (0, 0) if out is None else (int(q) for q in affine.quantize(np.asarray(bounds, np.float32), out))
        bias_integers = self._bias(node, bias, operands)
        operation = None if function is None else build_operation(function)
        job = Job(node, operands, out, bounds, low, high, bias_integers, self.rounding, operation, addend)
        kernel: Kernel = move(job, extra) if node.op_type in MOVES else builder(job)
        for other in self._chain(node):
            self._taken.add(str(other.name))

        def run(values: Sequence[IntegerTensor | Array]) -> Sequence[Array]:
            result = kernel([value for value in values if isinstance(value, IntegerTensor)])
            return result if isinstance(result, list | tuple) else [result]  # type: ignore[list-item]

        named = ["Add"] * (addend is not None) + ([] if function is None else [function.op_type])
        verb = "are" if len(named) > 1 else "is"
        why = f"{' and '.join(named)} {verb} computed in float on its sums, as on the target" if named else ""
        return Step(node, reads, outputs, run, out is not None, why if out is not None else "its output stays float")

    def _operands(self, node: ir.Node) -> tuple[list[Read], list[Operand], list[torch.Tensor]]:
        """(computed tensors, operands with the constants among them, constants of other types)."""
        reads, operands, extra = [], [], []
        for index, value in enumerate(node.inputs):
            if value is None or not value.name or index in _PARAMETERS.get(node.op_type, ()):
                continue
            name, array = value_name(value), constant_value(value)
            if array is None:
                if not self.reads_integers(name, node):
                    raise RefusalError(f"it reads {name!r}, which stays float")
                reads.append(Read(name, True))
                operands.append(Operand(name, self.grid(name)))
            elif node.op_type in _SHAPES and index > 0:
                continue
            elif array.dtype != np.float32:
                extra.append(torch.from_numpy(np.array(array)))
            elif node.op_type in ("Conv", "Gemm") and index == 2:
                continue
            elif self.decision(name) is None:
                raise RefusalError(f"its constant {name!r} stays float")
            else:
                grid = self.grid(name)
                operands.append(Operand(name, grid, affine.quantize(array, grid)))
        return reads, operands, extra

    def _out(self, node: ir.Node, outputs: Sequence[str]) -> QParams | None:
        decisions = [self.decision(name) for name in outputs]
        if all(d is not None and d.consumers is None for d in decisions):
            grids = [self.grid(name) for name in outputs]
            if any(g is not grids[0] and float(g.scale) != float(grids[0].scale) for g in grids):
                raise RefusalError("its outputs have several scales")
            return grids[0]
        if node.op_type not in LINEAR:
            raise RefusalError("its output stays float, for some reader at least")
        return None

    # ---- what is fused behind a layer --------------------------------------------------------------------------

    def _chain(self, node: ir.Node) -> list[ir.Node]:
        """The nodes behind one that belong to its kernel: those that read a fused tensor."""
        found: list[ir.Node] = []
        while (decision := self.placement.get(str(node.outputs[0].name))) is not None and decision.fused:
            (use,) = node.outputs[0].uses()
            node = use.node
            found.append(node)
        return found

    def _sum_of(self, node: ir.Node) -> ir.Node | None:
        """The sum of two tensors that a convolution computes behind its own."""
        chain = self._chain(node) if node.op_type == "Conv" else []
        return chain[0] if chain and chain[0].op_type == "Add" else None

    def _fused(
        self, node: ir.Node
    ) -> tuple[ir.Node, tuple[float, float], FloatArray | None, ir.Node | None, Operand | None]:
        """(the last node of the kernel, the bounds of its clamp, the constant added to a product, its function, the
        tensor that a convolution adds)."""
        low, high, bias, function, addend = -np.inf, np.inf, None, None, None
        last = node
        for other in self._chain(node):
            bounds = clip_bounds(other)
            if function is not None:
                raise RefusalError(f"{other.op_type} is fused behind a function, which has no integer form")
            if bounds is not None:
                low, high = max(low, bounds[1]), min(high, bounds[2])
            elif other.op_type == "Add" and bias is None and node.op_type == "MatMul":
                bias = next((a for v in other.inputs if (a := constant_value(v)) is not None), None)
                if bias is None:
                    raise RefusalError("it adds a tensor inside the kernel")
            elif other.op_type == "Add" and node.op_type == "Conv" and last is node:
                addend = self._addend(other, value_name(node.outputs[0]))
            elif node.op_type in LINEAR and other.op_type in ELEMENTWISE and len(other.inputs) == 1:
                function = other
            else:
                raise RefusalError(f"{other.op_type} is fused behind it, which has no integer form there")
            last = other
        return last, (low, high), bias, function, addend

    def _addend(self, node: ir.Node, sums: str) -> Operand:
        """The other operand of a sum that a convolution computes."""
        for value in node.inputs:
            if value is None or value.name == sums or constant_value(value) is not None:
                continue
            if self.reads_integers(value_name(value), node):
                return Operand(value_name(value), self.grid(value_name(value)))
        raise RefusalError("it adds a tensor inside the kernel that stays float")

    def _bias(self, node: ir.Node, added: FloatArray | None, operands: Sequence[Operand]) -> IntArray | None:
        """round(b / (s_x s_w)) of a layer, (O,), checked against 32 bits."""
        value = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
        bias = added if value is None else constant_value(value)
        if bias is None:
            if value is not None:
                raise RefusalError("its bias is computed at run time")
            return None
        if len(operands) != 2:
            raise RefusalError("it has a bias but no weight")
        step = np.asarray(operands[0].grid.scale * operands[1].grid.scale, dtype=np.float32)
        steps = np.rint(bias.astype(np.float64).reshape(-1) / step.astype(np.float64))
        beyond = np.flatnonzero(~(np.abs(steps) <= INT32_MAX))
        if beyond.size:
            raise AccumulatorOverflowError(
                f"node {node.name!r}: the bias of channel {beyond[0]} is {steps[beyond[0]]:.4g} at its scale, which "
                "32 bits do not hold; raise that channel's weight scale"
            )
        return np.asarray(steps.astype(np.int64))

    # ---- float nodes -------------------------------------------------------------------------------------------

    def _float(self, node: ir.Node, why: str) -> Step:
        """The torch operation on the numbers that the integers stand for, as the simulation has it."""
        operation = build_operation(node)
        reads: list[Read] = []
        constants: list[torch.Tensor | None] = []
        for index, value in enumerate(node.inputs):
            if value is None or not value.name:
                continue
            array = constant_value(value)
            if array is None:
                reads.append(Read(value_name(value), self.reads_integers(value_name(value), node)))
                constants.append(None)
            elif index == 0 or node.op_type not in _SHAPES:
                constants.append(torch.from_numpy(self._rounded(node, index, value_name(value), np.array(array))))

        def run(values: Sequence[IntegerTensor | Array]) -> Sequence[Array]:
            left = [torch.from_numpy(v.real() if isinstance(v, IntegerTensor) else v) for v in values]
            result = operation(*[left.pop(0) if c is None else c for c in constants])
            results = result if isinstance(result, tuple | list) else (result,)
            return [np.asarray(r.numpy()) for r in results]

        return Step(node, reads, [str(v.name) for v in node.outputs if v.name], run, False, why)

    def _rounded(self, node: ir.Node, index: int, name: str, array: Array) -> Array:
        """A constant as a float node reads it: on its grid where it has one."""
        if self.decision(name) is not None:
            return affine.fake_quantize(array, self.grid(name))
        decision = self.placement.get(name)
        if node.op_type in ("Conv", "Gemm") and index == 2 and decision is not None and decision.spec is not None:
            x, weight = (value_name(v) for v in node.inputs[:2] if v is not None)
            if self.reads_integers(x, node) and self.decision(weight) is not None:
                step = np.asarray(self.grid(x).scale * self.grid(weight).scale, dtype=np.float32)
                return affine.fake_quantize(array, _int32(step))
        return array


def _int32(step: FloatArray) -> QParams:
    spec = QuantSpec(-INT32_MAX, INT32_MAX, axis=0 if step.ndim else None)
    return QParams(spec, step, np.zeros(step.shape, np.int64))
