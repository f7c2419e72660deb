"""Constants that are repeated for each image (a class token) take the batch from the image input, in one form."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    dims,
    graph_of,
    input_at,
    insert_before,
    ints_constant,
    node_label,
    producer_of,
)
from fullquant.graph.shape_values import shape_elements

_log = logging.getLogger(__name__)


def batch_expand(model: ir.Model) -> int:
    """Expand(c, computed target) -> Expand(c, Concat(Shape(image)[0:1], known sizes)); returns how many were changed.

    Exporters compute the target in ten or more nodes from the shape of some tensor on the way. Where its first size
    is the batch and the others are known, the batch is asked of the image itself; where the data has the batch already
    the target is a constant, with 1 for "as it is".
    """
    image = model.graph.inputs[0] if len(model.graph.inputs) == 1 else None
    batch = (dims(image) or (None,))[0]
    if image is None or not isinstance(batch, str):
        return 0
    return sum(_expand(node, image, batch) for node in list(model.graph) if node.op_type == "Expand")


def _expand(node: ir.Node, image: ir.Value, batch: str) -> bool:
    target, data = input_at(node, 1), dims(node.inputs[0])
    if node.domain != "" or target is None or data is None or ints_constant(target) is not None:
        return False
    sizes = shape_elements(target)
    known = [] if sizes is None else [size for size in sizes[1:] if isinstance(size, int)]
    if not sizes or sizes[0] != batch or len(known) != len(sizes) - 1:
        _log.debug("%s has a target that is not the batch and known sizes: %s; kept", node_label(node), sizes)
        return False
    if len(data) == len(sizes) and data[0] == batch:
        constant = add_initializer(graph_of(node), f"{node.name}.target", np.asarray([1, *known], dtype=np.int64))
        node.replace_input_with(1, constant)
        return True
    if not known or takes_batch(target, image):
        return False
    # 1 means "as it is" to ONNX, Paddle wants the size.
    behind = [1] * (len(sizes) - len(data)) + list(data)
    known = [
        kept if size == 1 and isinstance(kept, int) else size for size, kept in zip(known, behind[1:], strict=True)
    ]
    take_batch(node, image, known)
    return True


def take_batch(node: ir.Node, image: ir.Value, known: Sequence[int]) -> None:
    """The target of an Expand becomes Concat(Shape(image)[0:1], known)."""
    rest = add_initializer(graph_of(node), f"{node.name}.sizes", np.asarray(known, dtype=np.int64))
    size = insert_before(node, "Shape", [image], {"start": 0, "end": 1})
    node.replace_input_with(1, insert_before(node, "Concat", [size, rest], {"axis": 0}))


def takes_batch(target: ir.Value, image: ir.Value) -> bool:
    """Whether a target has that form already."""
    joined = producer_of(target, "Concat")
    if joined is None or len(joined.inputs) != 2 or ints_constant(joined.inputs[1]) is None:
        return False
    size = producer_of(joined.inputs[0], "Shape")
    return size is not None and size.inputs[0] is image
