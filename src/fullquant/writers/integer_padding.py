"""Padding of quantized tensors: what the integers are padded with.

OpenVINO (2026.4.1) moves a DequantizeLinear behind the operator that pads, and then pads with the integer 0 where the
zero point stands for 0: behind a Pad of floats along one axis, and in an average that counts its padding. So Pad is
written for integers, with the integer that stands for its constant, and such an average as a Pad and an average without
padding. Decision 0019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    attribute_ints,
    attribute_string,
    data_input,
    input_at,
    insert_before,
    plain_attributes,
    replace_node,
    scalar_constant,
    value_name,
)
from fullquant.placement.decision import Placement


def padding_value(node: ir.Node) -> float | None:
    """The constant that a Pad puts around its input; None for other modes, and for a value computed at run time."""
    if attribute_string(node, "mode", "constant") != "constant":
        return None
    value = input_at(node, 2)
    return 0.0 if value is None else scalar_constant(value)


def split_padded_averages(graph: ir.Graph, placement: Placement, has_offset: Callable[[str], bool]) -> Placement:
    """AveragePool that counts its padding -> Pad -> AveragePool without padding, in place.

    has_offset: whether 0 is another integer than 0 in the file, for a placed tensor. Returns the placement with a
    decision for each new tensor, which shares the scale of the tensor that is padded.
    """
    decisions = dict(placement.decisions)
    for node in list(graph):
        pads = _counted_padding(node)
        if pads is None:
            continue
        source = data_input(node)
        decision = placement.get(value_name(source))
        if decision is None or decision.spec is None or decision.fused or decision.consumers is not None:
            continue
        owner = placement.scale_owner(decision.tensor)
        if not has_offset(owner):
            continue
        name = f"{decision.tensor}.padded"
        around = add_initializer(graph, f"{name}.pads", np.asarray(pads, np.int64))
        padded = insert_before(node, "Pad", [source, around], name=f"{name}.pad", output=name, like=source)
        padded.shape = None
        name = value_name(padded)
        attributes = {**plain_attributes(node), "pads": [0] * (len(pads) - 4), "count_include_pad": 0}
        replace_node(node, "AveragePool", [padded], attributes)
        decisions[name] = replace(
            decision, tensor=name, shares=owner, reason=f"{decision.tensor!r} with the padding of an average"
        )
    return Placement(placement.target, decisions)


def _counted_padding(node: ir.Node) -> list[int] | None:
    """The pads of all axes, [2 * rank], of an AveragePool that counts them. With ceil_mode windows may end outside."""
    if node.op_type != "AveragePool" or not attribute_int(node, "count_include_pad", 0):
        return None
    own = attribute_ints(node, "pads", [])
    if not any(own) or attribute_int(node, "ceil_mode", 0):
        return None
    half = len(own) // 2
    return [0, 0, *own[:half], 0, 0, *own[half:]]
