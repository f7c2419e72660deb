"""The invariants that every pass must leave intact."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import node_label

MIN_OPSET = 13


def verify(model: ir.Model) -> None:
    """Checks the canonical graph's structure; raises ModelError naming the first node or value that breaks a rule.

    - the default operator set is imported, at version 13 or newer, and so is every node's domain;
    - no functions, no subgraphs;
    - every value and node has a name, no two values share one, no two nodes either;
    - every input of a node is a graph input, an initializer, or an output of an earlier node;
    - every initializer has contents that fit its declared shape and dtype;
    - every graph output is computed in the graph, and no removed node still reads a value.
    """
    _verify_opset(model)
    graph = model.graph
    defined = _verify_sources(graph)
    _verify_nodes(graph, defined)
    _verify_outputs(graph, defined)
    _verify_uses(graph)


def _verify_opset(model: ir.Model) -> None:
    version = model.opset_imports.get("")
    if version is None or version < MIN_OPSET:
        raise ModelError(f"the graph imports opset {version}, at least {MIN_OPSET} is needed; convert the model first")
    if model.functions:
        raise ModelError(f"the model has functions ({next(iter(model.functions))[1]!r}); inline them first")
    for node in model.graph:
        if node.domain not in model.opset_imports:
            raise ModelError(f"{node_label(node)} is of domain {node.domain!r}, which the model doesn't import")


def _verify_sources(graph: ir.Graph) -> dict[str, ir.Value]:
    """Checks graph inputs and initializers; returns them by name."""
    defined: dict[str, ir.Value] = {}
    for value in graph.inputs:
        _define(defined, value, "graph input")
    for key, value in graph.initializers.items():
        if value in graph.inputs:
            raise ModelError(f"initializer {key!r} is a graph input too; remove it from the inputs")
        if key != value.name:
            raise ModelError(f"initializer {value.name!r} is registered as {key!r}")
        _define(defined, value, "initializer")
        _verify_initializer(value)
    return defined


def _verify_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        raise ModelError(f"initializer {value.name!r} has no contents")
    if value.shape is not None and tuple(value.shape.dims) != tuple(tensor.shape.dims):
        raise ModelError(f"initializer {value.name!r} declares shape {value.shape}, its contents have {tensor.shape}")
    if value.dtype is not None and value.dtype != tensor.dtype:
        raise ModelError(f"initializer {value.name!r} declares {value.dtype}, its contents are {tensor.dtype}")


def _verify_nodes(graph: ir.Graph, defined: dict[str, ir.Value]) -> None:
    names: set[str] = set()
    for node in graph:
        if not node.name:
            raise ModelError(f"a {node.op_type} node has no name")
        if node.name in names:
            raise ModelError(f"two nodes are named {node.name!r}")
        names.add(node.name)
        for name, attribute in node.attributes.items():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise ModelError(f"{node_label(node)} has a subgraph ({name!r}), which has no rule here")
        for index, value in enumerate(node.inputs):
            if value is not None and defined.get(value.name or "") is not value:
                raise ModelError(
                    f"{node_label(node)} reads {value.name!r} (input {index}), which nothing before it defines"
                )
        for value in node.outputs:
            # An optional output that is left out has the empty name.
            if value.name != "" or list(value.uses()):
                _define(defined, value, f"output of {node_label(node)}")


def _define(defined: dict[str, ir.Value], value: ir.Value, what: str) -> None:
    if not value.name:
        raise ModelError(f"a value has no name ({what})")
    if value.name in defined:
        raise ModelError(f"{value.name!r} ({what}) is defined twice")
    defined[value.name] = value


def _verify_outputs(graph: ir.Graph, defined: dict[str, ir.Value]) -> None:
    if not graph.outputs:
        raise ModelError(f"graph {graph.name!r} has no output")
    for value in graph.outputs:
        if defined.get(value.name or "") is not value:
            raise ModelError(f"graph output {value.name!r} is computed by no node of the graph")


def _verify_uses(graph: ir.Graph) -> None:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        for use in value.uses():
            if use.node.graph is not graph:
                raise ModelError(f"{node_label(use.node)} was removed but still reads {value.name!r}")
