"""Every operator of a placed graph: whether the target computes it in integers, and if not, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.multiply_adds import at_batch_one, multiply_add_kind, multiply_adds
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.placement.decision import Placement
from fullquant.placement.rules import Target

# int8: integers in, integers out. float_kernel: the tensors around it are int8, the arithmetic is in float. float: its
# tensors are not int8. none: it computes shapes or indices, no real numbers.
Placed = Literal["int8", "float_kernel", "float", "none"]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class NodeEntry:
    """One operator of the graph.

    source: its name in the file ("depthwise_conv2d"). output: the variable that it writes; shape: of that, for one
    image, names where sizes are free. parameters: numbers in its weights and biases. multiply_adds: of one image; None
    where sizes are free. reason: why it is placed so.
    """

    name: str
    operator: str
    source: str
    output: str
    shape: tuple[int | str, ...]
    parameters: int
    multiply_adds: int | None
    placed: Placed
    reason: str


@dataclass(frozen=True)
class FallbackEntry:
    """Operators of one type that are computed in float for one reason. nodes: their names, in order of computation."""

    operator: str
    placed: Placed
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class OperatorCount:
    """How many nodes of one operator there are, and how many of them are computed in integers on the target.

    kernel: what the target computes the operator in, "int8" or "float"; "" where it has no rule.
    multiply_adds: of one image; None where sizes are free.
    """

    operator: str
    nodes: int
    int8: int
    kernel: str
    parameters: int
    multiply_adds: int | None


def node_entries(
    model: ir.Model, placement: Placement | None, target: Target, without_rule: Mapping[str, str]
) -> tuple[NodeEntry, ...]:
    """One entry for each node. without_rule: {node: why}, of those that the target cannot place."""
    single = _for_one_image(model)
    batch = _fixed_batch(single)
    entries = []
    counted: set[str] = set()
    for node, sized in zip(model.graph, single.graph, strict=True):
        products = multiply_adds(sized)
        placed, reason = _placed(node, placement, target, without_rule)
        output = sized.outputs[0]
        entries.append(
            NodeEntry(
                str(node.name),
                node.op_type,
                node.metadata_props.get("fullquant.op_type", node.op_type),
                str(output.name),
                shape_of(output),
                _parameters(node, counted),
                None if products is None else products // batch,
                placed,
                reason,
            )
        )
    return tuple(entries)


def shape_of(value: ir.Value) -> tuple[int | str, ...]:
    """Sizes as numbers; the name where one is free, "?" where it has none. () where nothing is known."""
    if value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape)


def operator_counts(nodes: Sequence[NodeEntry], target: Target) -> tuple[OperatorCount, ...]:
    """By operator, the most frequent first."""
    count = Counter(node.operator for node in nodes)
    found = []
    for name, number in count.most_common():
        own = [node for node in nodes if node.operator == name]
        found.append(
            OperatorCount(
                name,
                number,
                sum(node.placed == "int8" for node in own),
                target.kernel(name) or "",
                sum(node.parameters for node in own),
                total([node.multiply_adds for node in own]),
            )
        )
    return tuple(found)


def multiply_adds_by_kind(model: ir.Model, nodes: Sequence[NodeEntry]) -> dict[str, int] | None:
    """{"Conv": ..., "Conv depthwise": ..., "MatMul": ...}, of one image; None where sizes are free."""
    found = Counter[str]()
    for node, entry in zip(model.graph, nodes, strict=True):
        if entry.multiply_adds is None:
            return None
        if entry.multiply_adds:
            found[multiply_add_kind(node)] += entry.multiply_adds
    return dict(found.most_common())


def fallback(nodes: Sequence[NodeEntry]) -> tuple[FallbackEntry, ...]:
    """What is computed in float, by operator and reason, the most frequent first."""
    groups: dict[tuple[str, Placed, str], list[str]] = {}
    for node in nodes:
        if node.placed in ("float", "float_kernel"):
            groups.setdefault((node.operator, node.placed, node.reason), []).append(node.name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(FallbackEntry(*key, tuple(names)) for key, names in ordered)


def total(numbers: Sequence[int | None]) -> int | None:
    """The sum; None where one is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _placed(
    node: ir.Node, placement: Placement | None, target: Target, without_rule: Mapping[str, str]
) -> tuple[Placed, str]:
    if str(node.name) in without_rule:
        return "float", without_rule[str(node.name)]
    decision = None if placement is None else placement.get(str(node.outputs[0].name))
    if placement is None or decision is None:
        return "none", "computes shapes or indices, no real numbers" if placement is not None else "not placed"
    if decision.spec is None:
        return "float", decision.reason
    for value in node.inputs:
        read = None if value is None else placement.get(str(value.name))
        if read is None or read.kind != "activation":
            continue
        if read.spec is None or (read.consumers is not None and node.name not in read.consumers):
            return "float", "kept float by not_quant_pattern" if read.spec is not None else read.reason
        if read.fused:
            return "int8", read.reason
    if target.kernel(node.op_type) == "int8":
        return "int8", f"{target.name} has an int8 kernel"
    return "float_kernel", f"{target.name} has no int8 kernel: int8 in and out, computed in float between"


def _parameters(node: ir.Node, counted: set[str]) -> int:
    """Elements of the float constants that it reads, scalars aside; a constant that two nodes read counts once."""
    number = 0
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or value.is_graph_input() or str(value.name) in counted:
            continue
        if tensor.dtype in _FLOATS and len(tensor.shape) > 0:
            counted.add(str(value.name))
            number += int(tensor.size)
    return number


def _for_one_image(model: ir.Model) -> ir.Model:
    """The graph with the sizes of one image; those of a batch where it cannot be taken apart."""
    single = at_batch_one(model)
    try:
        infer_shapes(single)
    except ModelError:
        return model
    return single


def _fixed_batch(model: ir.Model) -> int:
    """1, or the batch of a model that computes across its images."""
    shape = model.graph.inputs[0].shape
    size = None if shape is None or len(shape) == 0 else shape[0]
    return size if isinstance(size, int) and size > 0 else 1
