"""Which sums a runtime computes inside the convolution in front of them: Paddle's oneDNN passes, and OpenVINO.

The pass conv_elementwise_add_onednn_fuse_pass (Paddle 45f651a798, paddle/fluid/framework/ir/onednn) takes a sum of
equal shapes into a convolution whose output nobody else reads:

- of two convolutions into the one that comes later: into y where the input of x leads to y, else into x where the
  input of y leads to x;
- of one convolution and another tensor where that tensor leads to the convolution, as in a residual block.

Its patterns name each tensor once. So a convolution that reads the other operand itself is left alone, and so are two
that read the same tensor (tried, Paddle 3.3.1). A shortcut that does not lead to the convolution, such as a padded one,
leaves an addition of its own too.

OpenVINO takes a sum into a convolution whatever the other operand is, and with a clamp or a function in between (tried,
OpenVINO 2026.4.1: small networks of each kind, with and without a rounding in front of the sum).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir


def joined_sums(
    graph: ir.Graph,
    placed: Callable[[ir.Node], bool],
    *,
    any_operand: bool = False,
    inner: Collection[str] = (),
) -> dict[str, ir.Node]:
    """{output of a convolution: the Add that is computed with it}. placed: whether a node computes in integers.

    inner: operators that may stand between the two; then it is their output. any_operand: OpenVINO's way, not Paddle's.
    """
    found: dict[str, ir.Node] = {}
    for node in graph:
        if node.op_type != "Add" or not placed(node) or len(node.inputs) != 2:
            continue
        x, y = node.inputs
        if x is None or y is None or x.const_value is not None or y.const_value is not None or not _same_shape(x, y):
            continue
        layers = [_layer_of(value, placed, inner) for value in (x, y)]
        chosen = _of_any(x, y, layers) if any_operand else _of_paths(x, y, layers)
        if chosen is not None:
            found[str(chosen.name)] = node
    return found


def _of_any(x: ir.Value, y: ir.Value, layers: Sequence[ir.Node | None]) -> ir.Value | None:
    """The operand whose convolution computes the sum: the only one that has one, or that of the later."""
    first, second = layers
    if first is not None and second is not None:
        return x if _leads_to(second.inputs[0], x) and not _leads_to(first.inputs[0], y) else y
    return x if first is not None else y if second is not None else None


def _of_paths(x: ir.Value, y: ir.Value, layers: Sequence[ir.Node | None]) -> ir.Value | None:
    """The same by the patterns of Paddle's pass; None where the sum stands alone."""
    sources = [None if layer is None else layer.inputs[0] for layer in layers]
    if None not in layers:
        if sources[0] is sources[1]:
            return None
        if _leads_to(sources[0], y):
            return y
        return x if _leads_to(sources[1], x) else None
    if layers[0] is not None and sources[0] is not y and _leads_to(y, x):
        return x
    return y if layers[1] is not None and sources[1] is not x and _leads_to(x, y) else None


def _layer_of(value: ir.Value, placed: Callable[[ir.Node], bool], inner: Collection[str]) -> ir.Node | None:
    """The convolution whose output the sum alone reads, as it is or behind `inner` operators."""
    producer = value.producer()
    if producer is None or value.is_graph_output() or len(list(value.uses())) != 1 or not placed(producer):
        return None
    if producer.op_type in inner and producer.inputs[0] is not None:
        return _layer_of(producer.inputs[0], placed, inner)
    return producer if producer.op_type == "Conv" else None


def _same_shape(x: ir.Value, y: ir.Value) -> bool:
    return x.shape is not None and y.shape is not None and list(x.shape) == list(y.shape)


def _leads_to(source: ir.Value | None, target: ir.Value) -> bool:
    """Whether the target is computed from the source."""
    left, seen = [target], {id(target)}
    while left:
        value = left.pop()
        if value is source:
            return True
        producer = value.producer()
        for other in () if producer is None else producer.inputs:
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                left.append(other)
    return False
