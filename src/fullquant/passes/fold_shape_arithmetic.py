"""Whatever the graph computes from the sizes of its image is computed now, also where the batch size is open.

Exporters write the shapes of windows, heads and tokens as Shape, Gather, Mul, Cast, Where, ConstantOfShape and so on.
Rules for single operators would never be complete. Here two copies of the graph get two different batch sizes and
are folded by ONNX's reference implementation: what is equal in both is a constant, and what differs depends on the
batch alone.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import (
    add_initializer,
    add_named,
    constant_value,
    dims,
    graph_of,
    ints_constant,
    node_label,
    prune,
    replace_node,
    replace_uses,
    value_name,
)
from fullquant.passes.constants import fold_constants
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.remove_unused import remove_unused
from fullquant.passes.two_batches import BatchCopy, repeated_rows, static_resize, strided_gather

_log = logging.getLogger(__name__)

#: Two batch sizes that divide nothing that an architecture is made of.
_BATCHES = (11, 13)
_ROUNDS = 40
#: Operators whose answer follows from sizes alone: without one of them there is nothing to do.
_FROM_SIZES = frozenset({"Shape", "Size"})


def fold_shape_arithmetic(model: ir.Model) -> int:
    """Replaces values that follow from the sizes of the image; returns how many.

    A value that is the same for every batch becomes an initializer. Where it depends on the batch: the target of a
    Reshape or Expand gets 0, 1 or -1 there; for a Resize, positions and rows that are the same for every image see
    `two_batches`.
    Only for models with one input whose other sizes are known; anything else is left as it is.
    """
    shape = dims(model.graph.inputs[0]) if len(model.graph.inputs) == 1 else None
    if shape is None or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        return 0
    if not any(node.op_type in _FROM_SIZES and node.domain == "" for node in model.graph):
        return 0
    copies = [_folded(model, batch) for batch in _BATCHES]
    if copies[0] is None or copies[1] is None:
        return 0
    return _apply(model, copies[0], copies[1])


def _folded(model: ir.Model, batch: int) -> BatchCopy | None:
    """The copy for one batch; None where its shapes contradict each other."""
    copy = model.clone()
    image = copy.graph.inputs[0]
    image.shape = ir.Shape([batch, *list(image.shape or [])[1:]])
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    try:
        infer_shapes(copy)
        for _ in range(_ROUNDS):
            if not fold_constants(copy):
                break
            infer_shapes(copy)
    except ModelError as error:
        _log.debug("the graph has no shapes for a batch of %d: %s", batch, error)
        return None
    remove_unused(copy)
    shapes = {}
    for node in copy.graph:
        for value in node.outputs:
            sizes = dims(value)
            if sizes is not None and all(isinstance(size, int) for size in sizes):
                shapes[value_name(value)] = tuple(int(size) for size in sizes if isinstance(size, int))
    shapes[value_name(image)] = tuple(int(size) for size in dims(image) or () if isinstance(size, int))
    own = {str(value.name) for value in model.graph.initializers.values()}
    constants = {name: array for name, value in copy.graph.initializers.items()
                 if name not in own and (array := constant_value(value)) is not None}  # fmt: skip
    return BatchCopy(batch, constants, shapes)


def _apply(model: ir.Model, first: BatchCopy, second: BatchCopy) -> int:
    count = 0
    for node in list(model.graph):
        if node.graph is None:
            continue
        outputs = [value for value in node.outputs if value.name]
        names = [value_name(value) for value in outputs]
        if any(name in first.constants and name in second.constants for name in names):
            for value, name in zip(outputs, names, strict=True):
                if name in first.constants and name in second.constants:
                    count += _replace(value, first, second)
        elif node.op_type in ("Reshape", "Expand"):
            count += _with_static_target(node, first, second)
        elif node.op_type == "Resize":
            count += static_resize(node, (first, second))
        elif node.op_type == "Gather":
            count += strided_gather(node, (first, second))
    return count


def _replace(value: ir.Value, first: BatchCopy, second: BatchCopy) -> int:
    """A value that both copies know becomes an initializer if it is the same."""
    name = value_name(value)
    one, two = first.constants[name], second.constants[name]
    node = value.producer()
    if node is None or value.is_graph_output():
        return 0
    if one.shape == two.shape and np.array_equal(one, two):
        graph = graph_of(node)
        value.name = None
        replace_uses(value, add_named(graph, name, one))
        prune(node)
        return 1
    # The rows of one image repeated for each, such as a class token or an embedding of positions.
    return int(repeated_rows(value, (first, second)))


def _with_static_target(node: ir.Node, first: BatchCopy, second: BatchCopy) -> bool:
    """Makes the target of a Reshape or Expand constant: equal sizes as they are, others copied or inferred."""
    data, target = node.inputs[0], node.inputs[1]
    if data is None or ints_constant(target) is not None:
        return False
    result = value_name(node.outputs[0])
    befores = [copy.shapes.get(value_name(data)) for copy in (first, second)]
    afters = [copy.shapes.get(result) for copy in (first, second)]
    if any(shape is None for shape in (*befores, *afters)):
        return False
    (b1, b2), (a1, a2) = [tuple(shape or ()) for shape in befores], [tuple(shape or ()) for shape in afters]
    expand = node.op_type == "Expand"
    offset = len(a1) - len(b1) if expand else 0
    sizes = []
    for axis, (x, y) in enumerate(zip(a1, a2, strict=True)):
        source = axis - offset
        kept = 0 <= source < len(b1) and (b1[source], b2[source]) == (x, y)
        sizes.append(x if x == y else (1 if expand else 0) if kept else -1)
    if sizes.count(-1) > (0 if expand else 1):
        _log.debug("%s has sizes that depend on the batch in more than one place; kept", node_label(node))
        return False
    constant = add_initializer(graph_of(node), f"{node.name}.shape", np.asarray(sizes, dtype=np.int64))
    replace_node(node, node.op_type, [data, constant])
    return True
