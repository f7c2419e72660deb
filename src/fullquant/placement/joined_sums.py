"""Which sums Paddle's oneDNN passes compute inside the convolution in front of them.

The pass conv_elementwise_add_onednn_fuse_pass (Paddle 45f651a798, paddle/fluid/framework/ir/onednn) takes a sum of
equal shapes into a convolution whose output nobody else reads:

- of two convolutions into the one that comes later: into y where the input of x leads to y, else into x where the
  input of y leads to x;
- of one convolution and another tensor where that tensor leads to the convolution, as in a residual block.

Its patterns name each tensor once. So a convolution that reads the other operand itself is left alone, and so are two
that read the same tensor (tried, Paddle 3.3.1). A shortcut that does not lead to the convolution, such as a padded one,
leaves an addition of its own too.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir


def joined_sums(graph: ir.Graph, placed: Callable[[ir.Node], bool]) -> dict[str, ir.Node]:
    """{output of a convolution: the Add that is computed with it}. placed: whether a node computes in integers."""
    found: dict[str, ir.Node] = {}
    for node in graph:
        if node.op_type != "Add" or not placed(node) or len(node.inputs) != 2:
            continue
        convolution = _convolution_of(node, placed)
        if convolution is not None:
            found[str(convolution.name)] = node
    return found


def _convolution_of(node: ir.Node, placed: Callable[[ir.Node], bool]) -> ir.Value | None:
    """The operand of a sum whose convolution computes it; None where the sum stands alone."""
    x, y = node.inputs
    if x is None or y is None or x.const_value is not None or y.const_value is not None or not _same_shape(x, y):
        return None
    x_is_layer, y_is_layer = (_is_read_once(value, placed) for value in (x, y))
    if x_is_layer and y_is_layer:
        if _input_of(x) is _input_of(y):
            return None
        if _leads_to(_input_of(x), y):
            return y
        return x if _leads_to(_input_of(y), x) else None
    if x_is_layer and _input_of(x) is not y and _leads_to(y, x):
        return x
    return y if y_is_layer and _input_of(y) is not x and _leads_to(x, y) else None


def _is_read_once(value: ir.Value, placed: Callable[[ir.Node], bool]) -> bool:
    """Whether the value is the output of a convolution that the sum alone reads."""
    producer = value.producer()
    once = len(list(value.uses())) == 1 and not value.is_graph_output()
    return once and producer is not None and producer.op_type == "Conv" and placed(producer)


def _input_of(value: ir.Value) -> ir.Value | None:
    producer = value.producer()
    return None if producer is None else producer.inputs[0]


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
