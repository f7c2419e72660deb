"""Graph + target table -> one Decision per float tensor.

Rules, in this order (design.md, section 4):
 1. Operators that only move data share one scale between input and output; so does Concat, over all its inputs.
 2. A ReLU or Clip whose input nobody else reads is fused into the operator in front: one rounding, after the clamp.
 3. So is a function that the target's layers compute on their accumulators (`fused_functions`).
 4. Every other float tensor between the input and the output has a scale of its own; on a target that rounds in front
    of its integer kernels only (`rounds_floats`), those that such a kernel reads or makes.
 5. Weights: int8, per output channel where the target's table has that; biases: int32 at scale_x * scale_w.

What differs between targets is in their tables (`tables`): roles, kernels, grids, granularity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import onnx_ir as ir

from fullquant.errors import PlacementError
from fullquant.numerics.qparams import ACTIVATION_MANTISSAS, POWERS_OF_TWO, WEIGHT_MANTISSAS, QuantSpec
from fullquant.placement.constants import ConstantPlacer, adds_bias
from fullquant.placement.decision import Decision, Placement
from fullquant.placement.float_tensors import Rounding, has_integer_kernel
from fullquant.placement.joined_sums import joined_sums
from fullquant.placement.non_negative import non_negative_tensors
from fullquant.placement.rules import Role, Target
from fullquant.placement.target import find_target

ScaleGrid = Literal["short", "power_of_two", "free"]
_ACTIVATION_SCALES: dict[ScaleGrid, tuple[float, ...]] = {
    "short": ACTIVATION_MANTISSAS, "power_of_two": POWERS_OF_TWO, "free": (),
}  # fmt: skip
_WEIGHT_SCALES: dict[ScaleGrid, tuple[float, ...]] = {**_ACTIVATION_SCALES, "short": WEIGHT_MANTISSAS}

# The names that PaddleSlim configurations use -> the ONNX operators they become here.
_PADDLE_OP_TYPES = {
    "conv2d": "Conv", "depthwise_conv2d": "Conv", "conv2d_transpose": "ConvTranspose", "mul": "MatMul",
    "matmul": "MatMul", "matmul_v2": "MatMul", "elementwise_add": "Add",
    "elementwise_mul": "Mul", "relu": "Relu",
}  # fmt: skip
_MATMUL_FAMILY = frozenset({"mul", "matmul", "matmul_v2", "linear", "fc"})


@dataclass(frozen=True)
class PlacementOptions:
    """What the user may ask for.

    full: every float tensor is placed; otherwise only the inputs and weights of `op_types` (Paddle's operator names).
    skip_patterns: nodes whose name or name scope contains one of these stay float.
    skip_nodes: the same, by their whole names.
    reduce_range: weights in [-64, 63], for x86 processors without VNNI.
    per_channel: one weight scale per output channel; otherwise one per tensor.
    scale_grid: what scales may be: short ones (decision 0005), powers of two, or any.
    """

    full: bool = True
    op_types: tuple[str, ...] = ("conv2d", "depthwise_conv2d", "mul", "matmul", "matmul_v2")
    skip_patterns: tuple[str, ...] = ()
    skip_nodes: frozenset[str] = frozenset()
    reduce_range: bool = False
    per_channel: bool = True
    scale_grid: ScaleGrid = "free"


def place(model: ir.Model, target: str = "paddle_lite", options: PlacementOptions | None = None) -> Placement:
    """A Decision for each float tensor of the canonical graph.

    PlacementError: an operator has no integer rule on the target and no pattern keeps it float.
    """
    options = options or PlacementOptions()
    table = find_target(target)
    builder = _Builder(model.graph, table, options)
    decisions = builder.full() if options.full else builder.literal()
    kept = frozenset(str(n.name) for n in model.graph if not (table.rounds_floats or has_integer_kernel(n, table)))
    return Placement(target, decisions, table.clamps_by_clip, kept)


def without_rule(nodes: Iterable[ir.Node], target: Target) -> list[ir.Node]:
    """The nodes that compute real numbers and have no rule on the target."""
    return [n for n in nodes if n.op_type not in target.rules and any(_is_float(v) for v in n.outputs)]


class _Builder:
    def __init__(self, graph: ir.Graph, target: Target, options: PlacementOptions) -> None:
        self.graph, self.target, self.options = graph, target, options
        mantissas = _ACTIVATION_SCALES[options.scale_grid]
        self.activation = replace(target.activation, mantissas=mantissas)
        self.non_negative = replace(target.non_negative or target.activation, mantissas=mantissas)
        self.constants = ConstantPlacer(
            target, per_channel=options.per_channel, reduce_range=options.reduce_range,
            mantissas=() if target.requantizes_weights else _WEIGHT_SCALES[options.scale_grid],
        )  # fmt: skip
        self.nodes = list(graph)
        self.outputs = {str(v.name) for v in graph.outputs}
        self.skipped = {str(n.name) for n in self.nodes if self._matches(n, options.skip_patterns)}
        self.skipped |= options.skip_nodes
        self.parent: dict[str, str] = {}
        self.fused: dict[str, str] = {}  # tensor inside a fused kernel -> why
        self.sums: dict[str, ir.Node] = {}  # output of a layer -> the sum that it computes
        self.free: set[str] = set()  # roots of the groups with a tensor of Target.free_results
        self.softmaxes: set[str] = set()  # roots of the groups with the output of a Softmax
        self.signed: set[str] = set()  # roots of the groups with a tensor that may be below 0

    # ---- the two modes -----------------------------------------------------------------------------------------

    def full(self) -> dict[str, Decision]:
        self._check_roles()
        self._fuse_clamps()
        self._share_moves()
        self.softmaxes = {self._root(str(n.outputs[0].name)) for n in self.nodes if n.op_type == "Softmax"}
        self.free = self._free_groups()
        self.signed = self._signed_groups()
        self.rounding = Rounding(self.target, lambda node: self._role(node) is not None, self.fused, self.sums)
        decisions: dict[str, Decision] = {}
        for value in self._activations():
            decision = self._activation(value)
            decisions[decision.tensor] = decision
        self._point_to_owners(decisions)
        return {**decisions, **self.constants.decisions(self.nodes, set(map(_name, self.nodes)) - self.skipped)}

    def literal(self) -> dict[str, Decision]:
        """Only the inputs of the named operators, as PaddleSlim does when is_full_quantize is false."""
        wanted = {str(n.name) for n in self.nodes if self._is_wanted(n)} - self.skipped
        decisions: dict[str, Decision] = {}
        for value in self._activations():
            name = str(value.name)
            readers = frozenset(str(u.name) for u in value.consumers() if str(u.name) in wanted)
            if readers:
                reason = f"input of {', '.join(sorted(readers))}: in QuantAware.quantize_op_types"
                decisions[name] = Decision(name, "activation", self.activation, reason, consumers=readers)
            else:
                reason = "is_full_quantize is false and no operator of quantize_op_types reads it"
                decisions[name] = Decision(name, "activation", None, reason)
        return {**decisions, **self.constants.decisions(self.nodes, wanted)}

    # ---- which nodes -------------------------------------------------------------------------------------------

    def _matches(self, node: ir.Node, patterns: Collection[str]) -> bool:
        scope = node.metadata_props.get("fullquant.namescope", "")
        return any(p in str(node.name) or p in scope for p in patterns)

    def _is_wanted(self, node: ir.Node) -> bool:
        source = node.metadata_props.get("fullquant.op_type", "")
        names = set(self.options.op_types)
        if source in names or node.op_type in names:
            return True
        if node.op_type in ("Gemm", "MatMul"):
            return bool(names & _MATMUL_FAMILY)
        if node.op_type == "Conv":
            depthwise = _is_depthwise(node)
            return ("depthwise_conv2d" if depthwise else "conv2d") in names
        return any(_PADDLE_OP_TYPES.get(name) == node.op_type for name in names)

    def _check_roles(self) -> None:
        found = [node for node in without_rule(self.nodes, self.target) if str(node.name) not in self.skipped]
        if found:
            first = {node.op_type: str(node.name) for node in reversed(found)}
            count = Counter(node.op_type for node in found)
            listed = ", ".join(
                f"'{name}' ({f'node {first[name]!r}' if n == 1 else f'{n} nodes, the first {first[name]!r}'})"
                for name, n in count.items()
            )
            raise PlacementError(
                f"no int8 rule for {listed} on target {self.target.name!r}; "
                f"keep {'it' if len(found) == 1 else 'them'} float with QuantAware.not_quant_pattern"
            )

    def _role(self, node: ir.Node | None) -> Role | None:
        if node is None or str(node.name) in self.skipped:
            return None
        return self.target.role(node.op_type)

    # ---- sharing -----------------------------------------------------------------------------------------------

    def _root(self, name: str) -> str:
        while self.parent.setdefault(name, name) != name:
            name = self.parent[name]
        return name

    def _join(self, a: str, b: str) -> None:
        self.parent[self._root(a)] = self._root(b)

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        readers = list(value.uses())
        return readers[0].node if len(readers) == 1 and str(value.name) not in self.outputs else None

    def _fuse_clamps(self) -> None:
        if self.target.fused_sums:
            self.sums = joined_sums(
                self.graph,
                lambda node: self._role(node) is not None,
                any_operand=self.target.sums_of_any,
                inner=self._inner_operators() if self.target.sums_of_any else (),
            )
        for name, node in self.sums.items():
            self.fused[name] = "the convolution computes the sum behind it: rounded once, after the sum"
            self._join(name, str(node.outputs[0].name))
        for node in self.nodes:
            if self._role(node) == "compute" and node.op_type in self.target.fuses_activation:
                self._fuse_bias(node)
                reader = self._only_reader(node.outputs[0])
                if reader is not None and (self._role(reader) == "clamp" or self._is_fused_function(node, reader)):
                    out, after = str(node.outputs[0].name), str(reader.outputs[0].name)
                    self.fused[out] = (
                        f"{node.op_type} and {reader.op_type} are one kernel: rounded once, after the "
                        f"{'clamp' if self._role(reader) == 'clamp' else reader.op_type}"
                    )
                    self._join(out, after)

    def _inner_operators(self) -> frozenset[str]:
        """What may stand between a layer and a sum in one kernel."""
        clamps = {operator for operator in self.target.rules if self.target.role(operator) == "clamp"}
        return frozenset(clamps) | self.target.fused_functions

    def _is_fused_function(self, layer: ir.Node, reader: ir.Node) -> bool:
        is_layer = layer.op_type in self.target.function_layers or any(layer is node for node in self.sums.values())
        return is_layer and reader.op_type in self.target.fused_functions and self._role(reader) is not None

    def _fuse_bias(self, node: ir.Node) -> None:
        """MatMul + constant bias is one kernel: the product in front of the bias is not rounded."""
        if node.op_type != "MatMul":
            return
        reader = self._only_reader(node.outputs[0])
        if reader is not None and adds_bias(reader) and self._role(reader):
            self.fused[str(node.outputs[0].name)] = "MatMul and its bias are one kernel: rounded once, after the bias"
            self._join(str(node.outputs[0].name), str(reader.outputs[0].name))

    def _share_moves(self) -> None:
        for node in self.nodes:
            role = self._role(node)
            clamp_alone = role == "clamp" and str(node.inputs[0].name) not in self.fused  # type: ignore[union-attr]
            if role != "move" and not clamp_alone and node.op_type not in self.target.keeps_scale:
                continue
            tensors = [v for v in (*node.inputs, *node.outputs) if v is not None and _is_activation(v) and _is_float(v)]
            for first, second in pairwise(tensors):
                self._join(str(second.name), str(first.name))

    # ---- decisions ---------------------------------------------------------------------------------------------

    def _activations(self) -> Iterable[ir.Value]:
        yield from self.graph.inputs
        for node in self.nodes:
            yield from (v for v in node.outputs if v.name and _is_float(v))

    def _activation(self, value: ir.Value) -> Decision:
        name = str(value.name)
        producer = value.producer()
        readers = [u.node for u in value.uses()]
        live = frozenset(str(n.name) for n in readers if str(n.name) not in self.skipped)
        made_in_float = producer is not None and str(producer.name) in self.skipped
        if made_in_float and not live:
            return Decision(name, "activation", None, "made and read by operators that not_quant_pattern keeps float")
        if readers and not live and name not in self.outputs:
            return Decision(name, "activation", None, "read only by operators that not_quant_pattern keeps float")
        consumers = live if len(live) < len({str(n.name) for n in readers}) else None
        if not (self.target.rounds_floats or self.rounding.is_rounded(value)):
            return Decision(name, "activation", None, f"made and read in float on {self.target.name}: nobody rounds it")
        if name in self.fused:
            return Decision(name, "activation", self._grid(name), self.fused[name], fused=True)
        if not self.target.rounds_floats:
            integer = self.rounding.readers(value)
            consumers = integer if consumers is None or integer is None else consumers & integer
        if producer is None:
            reason = "the input image"
        elif name in self.outputs:
            reason = f"the output of the model, made by {producer.op_type}"
        else:
            reason = f"output of {producer.op_type}: every tensor of a fully integer model has a scale"
        if producer is not None and self.target.kernel(producer.op_type) == "float":
            reason += f"; {self.target.name} computes {producer.op_type} in float between int8 tensors"
        return Decision(name, "activation", self._grid(name), reason, consumers=consumers)

    def _grid(self, name: str) -> QuantSpec:
        """The grid of an activation.

        ONNX Runtime's QLinearSoftmax divides by a whole number of steps, floor(1 / scale): only a power of two gives
        what the file says (decision 0019).
        """
        grid = self.activation if self._root(name) in self.signed else self.non_negative
        if self.options.scale_grid == "short" and self._root(name) in self.softmaxes:
            return replace(grid, mantissas=POWERS_OF_TWO)
        if self.options.scale_grid == "short" and self._root(name) in self.free:
            return replace(grid, mantissas=())
        return grid

    def _free_groups(self) -> set[str]:
        """Roots of the groups with the result of one of the target's `free_results`, those inside a layer left out."""
        inside = {id(node) for node in self.sums.values()}
        nodes = [n for n in self.nodes if n.op_type in self.target.free_results and id(n) not in inside]
        return {self._root(str(n.outputs[0].name)) for n in nodes if has_integer_kernel(n, self.target)}

    def _signed_groups(self) -> set[str]:
        """Roots of the groups with a tensor that a kernel rounds and that may be below 0."""
        never_negative = non_negative_tensors(self.graph)
        names = [str(value.name) for value in self._activations()]
        return {self._root(name) for name in names if name not in self.fused and name not in never_negative}

    def _point_to_owners(self, decisions: dict[str, Decision]) -> None:
        """The owner of a group is its first tensor, in order of computation, that a kernel really rounds."""
        owners: dict[str, str] = {}
        for name, decision in decisions.items():
            if decision.spec is not None and not decision.fused:
                owners.setdefault(self._root(name), name)
        for name, decision in list(decisions.items()):
            if decision.spec is None:
                continue
            owner = owners[self._root(name)]
            if owner != name:
                why = decision.reason if decision.fused else f"only moves the values of {owner!r} and keeps their scale"
                decisions[name] = replace(decision, shares=owner, reason=why)


def _name(node: ir.Node) -> str:
    return str(node.name)


def _is_activation(value: ir.Value) -> bool:
    return value.const_value is None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def _is_depthwise(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    weight = node.inputs[1]
    return (
        group is not None
        and weight is not None
        and weight.shape is not None
        and group.value > 1
        and weight.shape[1] == 1
    )
