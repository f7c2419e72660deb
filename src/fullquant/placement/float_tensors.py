"""Which tensors a runtime rounds that computes in float between its integer kernels, and rounds in front of those only.

Such a runtime (Paddle Inference with oneDNN) dequantizes for a float kernel and quantizes again for the next integer
kernel. What a float kernel makes and only float kernels read is rounded nowhere; what one makes and both read is
rounded for the integer kernels alone. A layer with weights leaves its sums in float where nobody reads integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from fullquant.graph.edit import constant_value
from fullquant.placement.rules import LAYERS, Target

_PAIRS = ("Add", "Mul")


def has_integer_kernel(node: ir.Node, target: Target) -> bool:
    """Whether the target computes the node in integers: by its table, and sums and products of two tensors alone."""
    computed = all(constant_value(value) is None for value in node.inputs)
    return target.kernel(node.op_type) == "int8" and (node.op_type not in _PAIRS or computed)


class Rounding:
    """Answers for the tensors of one graph.

    placed: whether a node is placed at all. fused: tensors inside a kernel. sums: tensors that a layer adds up with
    another one, as in `joined_sums`.
    """

    def __init__(
        self, target: Target, placed: Callable[[ir.Node], bool], fused: Collection[str], sums: Collection[str]
    ) -> None:
        self.target, self._placed, self._fused, self._sums = target, placed, fused, sums
        self._wanted: dict[str, bool] = {}
        self._known: dict[str, bool] = {}

    def is_rounded(self, value: ir.Value) -> bool:
        """Whether somebody rounds the tensor; of one inside a kernel, the tensor that leaves the kernel."""
        name = str(value.name)
        if name not in self._known:
            self._known[name] = self._is_rounded(value)
        return self._known[name]

    def readers(self, value: ir.Value) -> frozenset[str] | None:
        """The nodes that read a rounded tensor as integers; None for all, as where an integer kernel made it."""
        if str(value.name) in self._fused or self._is_integer_made(value):
            return None
        nodes = [use.node for use in value.uses()]
        found = frozenset(str(node.name) for node in nodes if self._reads_integers(node))
        every = len(found) == len({str(node.name) for node in nodes}) and not value.is_graph_output()
        return None if every else found

    def _is_rounded(self, value: ir.Value) -> bool:
        name, producer = str(value.name), value.producer()
        if name in self._fused:
            (use,) = value.uses()
            return self.is_rounded(use.node.outputs[0])
        if producer is not None and self._passes_on(producer):
            if any(v is not None and v.const_value is None and self.is_rounded(v) for v in producer.inputs[:1]):
                return True
        elif producer is not None and self._is_integer(producer) and not self._leaves_sums(value):
            return True
        return self._is_wanted(value)

    def _leaves_sums(self, value: ir.Value) -> bool:
        """Whether a layer makes the tensor, alone or with what is fused behind it, that nobody needs as integers."""
        node = value.producer()
        while node is not None and (inside := self._inside(node)) is not None:
            if str(inside.name) in self._sums:
                return False
            node = inside.producer()
        return node is not None and node.op_type in LAYERS

    def _inside(self, node: ir.Node) -> ir.Value | None:
        """The tensor that the node reads from its own kernel."""
        return next((value for value in node.inputs if value is not None and str(value.name) in self._fused), None)

    def _is_wanted(self, value: ir.Value) -> bool:
        name = str(value.name)
        if name not in self._wanted:
            self._wanted[name] = any(self._reads_integers(use.node) for use in value.uses())
        return self._wanted[name]

    def _reads_integers(self, node: ir.Node) -> bool:
        if self._passes_on(node):
            return any(self._is_wanted(value) for value in node.outputs if value.name)
        return self._is_integer(node)

    def _passes_on(self, node: ir.Node) -> bool:
        """Operators whose output is on the grid if their input is: what is moved or cut off stays on it.

        A clamp inside a kernel is no such operator.
        """
        moves = node.op_type != "Concat" and self.target.role(node.op_type) in ("move", "clamp")
        return moves and self._placed(node) and self._inside(node) is None

    def _is_integer_made(self, value: ir.Value) -> bool:
        producer = value.producer()
        if producer is None:
            return False
        if self._passes_on(producer):
            source = producer.inputs[0]
            return source is not None and self.is_rounded(source)
        return self._is_integer(producer)

    def _is_integer(self, node: ir.Node) -> bool:
        """Whether the node has an integer kernel that takes these operands."""
        inside = self._inside(node)
        if inside is not None:
            producer = inside.producer()
            return producer is not None and self._is_integer(producer)
        return self._placed(node) and has_integer_kernel(node, self.target)
