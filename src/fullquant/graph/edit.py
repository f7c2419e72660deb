"""Small edits on onnx_ir graphs. Each leaves the graph valid: nodes in topological order, names unique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]
AttributeValue: TypeAlias = int | float | str | Sequence[int] | Sequence[float]

#: Metadata keys of nodes and models, see the canonical graph in the design.
OP_TYPE = "fullquant.op_type"
NAMESCOPE = "fullquant.namescope"
SOURCE = "fullquant.source"
SOURCE_FORMAT = "fullquant.source_format"


# --- reading -----------------------------------------------------------------------------------------------------


def value_name(value: ir.Value) -> str:
    """The value's name. Raises ModelError for an anonymous value, which no later stage could refer to."""
    if not value.name:
        raise ModelError(f"a value has no name: {value!r}; name it before it enters the graph")
    return value.name


def node_label(node: ir.Node) -> str:
    """`Conv 'conv2d_0'`, for messages."""
    return f"{node.op_type} {node.name!r}"


def constant_value(value: ir.Value | None) -> Array | None:
    """The array of an initializer or of a Constant node's output; None for everything computed from the input.

    A graph input with a default (an initializer that is also an input) can be fed, so it is no constant.
    """
    if value is None or value.is_graph_input():
        return None
    # Without a producer it is an initializer of a graph that is still being built.
    if value.const_value is not None and (value.is_initializer() or value.producer() is None):
        return np.asarray(value.const_value.numpy())
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain == "":
        return _constant_node_value(producer)
    return None


def _constant_node_value(node: ir.Node) -> Array | None:
    """The array of a Constant node; None for strings and sparse tensors."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return np.asarray(attribute.as_tensor().numpy())
        if name in ("value_int", "value_ints"):
            return np.asarray(attribute.value, dtype=np.int64)
        if name in ("value_float", "value_floats"):
            return np.asarray(attribute.value, dtype=np.float32)
    return None


def scalar_constant(value: ir.Value | None) -> float | None:
    """The number held by a constant with exactly one element, whatever its rank; None otherwise."""
    array = constant_value(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def ints_constant(value: ir.Value | None) -> list[int] | None:
    """The elements of a constant integer vector or scalar as a list; None if it isn't constant."""
    array = constant_value(value)
    return None if array is None else [int(element) for element in array.reshape(-1)]


def rank(value: ir.Value | None) -> int | None:
    """Number of axes, None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape: integers for known sizes, a name for symbolic ones, None for unknown ones. None without a shape."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the default where the node doesn't have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """A list attribute of integers, or the default where the node doesn't have it."""
    attribute = node.attributes.get(name)
    return list(default if attribute is None else attribute.as_ints())


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or the default where the node doesn't have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def attribute_string(node: ir.Node, name: str, default: str) -> str:
    """A string attribute, or the default where the node doesn't have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes as Python values, ready to be changed and given to replace_node."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`; None where it is left out, also at the end of the list."""
    return node.inputs[index] if index < len(node.inputs) else None


def data_input(node: ir.Node) -> ir.Value:
    """The first input. Raises ModelError if it is left out, which no operator here allows."""
    value = input_at(node, 0)
    if value is None:
        raise ModelError(f"{node_label(node)} has no first input; the model is damaged")
    return value


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes the value if its operator is one of `op_types` (any, if none is given), else None."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and (not op_types or producer.op_type in op_types) else None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, once; None if there are more readers, or if it is a graph output too."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def consumers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read the value, each once, in the order in which they were connected."""
    return tuple(dict.fromkeys(use.node for use in value.uses()))


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs, the one that isn't `value`; None for x+x and for other numbers of inputs."""
    if len(node.inputs) != 2 or node.inputs[0] is node.inputs[1]:
        return None
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def constant_operand(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """Of a node with two inputs, (the computed one, the constant one's array); None if none or both are constant."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    left, right = constant_value(first), constant_value(second)
    if first is not None and left is None and right is not None:
        return first, right
    if second is not None and right is None and left is not None:
        return second, left
    return None


def taken_names(graph: ir.Graph) -> set[str]:
    """The names of all nodes and values of the graph."""
    names = {value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    for node in graph:
        if node.name:
            names.add(node.name)
        names.update(value.name for value in node.outputs if value.name)
    return names


def unique_name(graph: ir.Graph, base: str) -> str:
    """`base` if no node or value has that name, else base_1, base_2, ..."""
    if not _is_taken(graph, base):
        return base
    taken, count = taken_names(graph), 1
    while (name := f"{base}_{count}") in taken:
        count += 1
    return name


def _is_taken(graph: ir.Graph, name: str) -> bool:
    """`name in taken_names(graph)`, without a set of all names: a large graph has tens of thousands."""
    if name in graph.initializers or any(value.name == name for value in graph.inputs):
        return True
    return any(node.name == name or any(value.name == name for value in node.outputs) for node in graph)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in. Raises ModelError for a node that was removed or sits in a function."""
    if not isinstance(node.graph, ir.Graph):
        raise ModelError(f"{node_label(node)} is in no graph")
    return node.graph


# --- changing ----------------------------------------------------------------------------------------------------


def add_initializer(graph: ir.Graph, name: str, array: npt.ArrayLike) -> ir.Value:
    """A new initializer with a unique name made from `name`, holding a copy of the array in its dtype."""
    return add_named(graph, unique_name(graph, name), array)


def add_named(graph: ir.Graph, name: str, array: npt.ArrayLike) -> ir.Value:
    """As add_initializer, for a name that is known to be free, such as that of the value it replaces."""
    data = np.array(array)
    data.setflags(write=False)
    tensor = ir.Tensor(data, name=name)
    value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_initializer(value: ir.Value, array: npt.ArrayLike) -> None:
    """Gives an initializer new contents, a copy of the array in its dtype; name and uses stay."""
    data = np.array(array)
    data.setflags(write=False)
    value.const_value = ir.Tensor(data, name=value.name)
    value.shape = ir.Shape(data.shape)
    value.type = ir.TensorType(value.const_value.dtype)


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Every reader of `old`, the graph outputs included, reads `new`. Names stay as they are."""
    graph = old.graph
    if graph is not None:
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
    for node, index in list(old.uses()):
        node.replace_input_with(index, new)


def prune(node: ir.Node) -> None:
    """Removes the node if nothing reads it, then the nodes that only it read, and so on upwards."""
    pending = [node]
    while pending:
        current = pending.pop()
        if current.graph is None or any(list(value.uses()) or value.is_graph_output() for value in current.outputs):
            continue
        producers = [producer_of(value) for value in current.inputs]
        graph_of(current).remove(current, safe=True)
        pending.extend(producer for producer in producers if producer is not None)


def take_over(new: ir.Value, old: ir.Value) -> None:
    """`new` replaces `old` for all readers and takes its name, shape and type; what computed `old` is pruned."""
    replace_uses(old, new)
    name, producer = old.name, old.producer()
    if producer is not None:
        prune(producer)
    old.name = None
    new.name = name
    # The shape inferred for the source's tensor stays valid: the same numbers flow here.
    if old.shape is not None:
        new.shape = old.shape
    if old.type is not None:
        new.type = old.type


def insert_before(
    node: ir.Node,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    name: str | None = None,
    output: str | None = None,
    like: ir.Value | None = None,
) -> ir.Value:
    """Inserts a node with one output in front of `node`; returns its output.

    name, output: names wanted for the node and its output, made unique; `node`'s name with the operator by default.
    like: a value whose shape and dtype the new one has.
    """
    graph = graph_of(node)
    new = ir.node(op_type, list(inputs), dict(attributes or {}))
    new.name = unique_name(graph, name or f"{node.name}_{op_type.lower()}")
    value = new.outputs[0]
    graph.insert_before(node, new)
    value.name = unique_name(graph, output or f"{new.name}.out")
    if like is not None:
        value.shape, value.type = like.shape, like.type
    return value


def replace_node(
    node: ir.Node,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    result: ir.Value | None = None,
) -> ir.Node:
    """Puts another node in the place of `node`, with its name and metadata; returns it.

    result: the value that the new node computes, by default `node`'s only output. The new output takes its name, its
    readers, its shape and its type: with the last value of a chain, the chain is fused and its last name is kept.
    Nodes that nothing reads any more are removed.
    """
    graph = graph_of(node)
    new = ir.node(op_type, list(inputs), dict(attributes or {}), metadata_props=dict(node.metadata_props))
    graph.insert_before(node, new)
    name, node.name = node.name, None
    old = node.outputs[0] if result is None else result
    # While both exist, the new output must not take a name of its own that the graph could hand out again.
    new.outputs[0].name = None
    take_over(new.outputs[0], old)
    prune(node)
    new.name = name
    return new


def remove_from_chain(node: ir.Node) -> bool:
    """Removes a node whose output equals its first input; False where names or the graph's border forbid it.

    The tensor keeps the output's name if that is a graph output, else the input's.
    """
    source, result = data_input(node), node.outputs[0]
    if not result.is_graph_output():
        replace_uses(result, source)
        prune(node)
        return True
    # The output's name must survive; a graph input, an initializer and a second output have names that must too.
    if source.producer() is None or source.is_graph_output():
        return False
    take_over(source, result)
    return True
