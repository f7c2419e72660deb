"""Nodes and initializers that nothing reads go."""

from __future__ import annotations

import onnx_ir as ir


def remove_unused(model: ir.Model) -> int:
    """Removes nodes none of whose outputs is used, from the end backwards, then unused initializers."""
    graph, count = model.graph, 0
    for node in list(reversed(graph)):
        if not any(list(value.uses()) or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            count += 1
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            graph.initializers.pop(name)
            count += 1
    return count
