"""The batch axis of the input is named N, also where the model was exported for a fixed batch."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.copying import copied
from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    dims,
    graph_of,
    input_at,
    ints_constant,
    node_label,
)
from fullquant.passes.infer_shapes import infer_shapes

_log = logging.getLogger(__name__)

BATCH = "N"


def free_batch(model: ir.Model) -> int:
    """Makes the first size of the image input the symbolic N; returns 1 if that changed the model.

    Calibration and training run with batches of their own. A model exported for a fixed batch B holds B again in the
    targets of Reshape and Expand; there it becomes "as many as come in". If the output then doesn't follow the
    input's batch, the model computes across images and stays as it was. For batches of B nothing changes.
    """
    image = model.graph.inputs[0] if len(model.graph.inputs) == 1 else None
    sizes = dims(image)
    if image is None or sizes is None or len(sizes) < 2 or sizes[0] == BATCH or BATCH in sizes:
        return 0
    trial = copied(model)
    if not _free(trial, sizes[0]) or not _batch_reaches_the_outputs(trial):
        _log.debug("the model mixes the images of a batch of %s; it keeps this batch", sizes[0])
        return 0
    _free(model, sizes[0])
    infer_shapes(model)
    return 1


def _free(model: ir.Model, batch: int | str | None) -> bool:
    """Renames the batch in place; False where a fixed batch occurs in a way that has no free form."""
    image = model.graph.inputs[0]
    if isinstance(batch, int):
        for node in list(model.graph):
            if node.domain == "" and node.op_type in ("Reshape", "Expand") and not _free_target(node, batch):
                _log.debug("%s has no target for other batches than %d", node_label(node), batch)
                return False
    assert image.shape is not None
    image.shape = ir.Shape([BATCH, *list(image.shape)[1:]])
    for node in model.graph:
        for value in node.outputs:
            # What was declared or inferred for the old batch must not answer for what the graph does now.
            value.shape = None
    return True


def _free_target(node: ir.Node, batch: int) -> bool:
    """Replaces the batch in a constant target by what keeps the data's first size: 0 for Reshape, 1 for Expand."""
    target, data = ints_constant(input_at(node, 1)), dims(node.inputs[0])
    if not target or not data or data[0] != batch:
        # No constant target, or not the batch axis: what comes of it shows at the output.
        return True
    if node.op_type == "Expand" and len(target) < len(data):
        return True
    free = 1 if node.op_type == "Expand" else 0
    if target[0] in (free, -1):
        return True
    if target[0] != batch or (len(target) > len(data) and free) or attribute_int(node, "allowzero", 0):
        return False
    changed = add_initializer(graph_of(node), f"{node.name}.target", np.asarray([free, *target[1:]], dtype=np.int64))
    node.replace_input_with(1, changed)
    return True


def _batch_reaches_the_outputs(model: ir.Model) -> bool:
    """Whether every output's first size follows from the input's."""
    try:
        infer_shapes(model)
    except ModelError:
        return False
    return all((dims(value) or (None,))[0] == BATCH for value in model.graph.outputs)
