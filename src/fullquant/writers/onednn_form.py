"""The same integer model in operators that Paddle's oneDNN passes compute as it is written.

Two operators get scales of their own there, whatever the file says (Paddle 37f8a1cd3b,
paddle/fluid/framework/ir/onednn/compute_propagate_scales_onednn_pass.cc):

- The weights of a matrix product get a scale for each run of K numbers in memory, taken for a column; of a matrix
  [K, N] in rows these are other numbers. Weights are cut off, or become coarser. A convolution's scales are right, so
  a product of a matrix is written as one with 1x1 pixels.
- The output of a pool2d gets the scale of its input. The average over an image, whose range is a fraction of the
  image's, is a reduce_mean instead, which is computed in float and has the scale of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from fullquant.graph.edit import (
    add_initializer,
    attribute_int,
    constant_value,
    insert_before,
    rank,
    replace_node,
    value_name,
)
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Decision, Placement

_KERNEL: Mapping[str, int | list[int]] = {
    "kernel_shape": [1, 1],
    "dilations": [1, 1],
    "strides": [1, 1],
    "pads": [0, 0, 0, 0],
    "group": 1,
}


def onednn_form(
    model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]
) -> tuple[ir.Model, Placement, Mapping[str, QParams]]:
    """(model, placement, scales) with products of matrices as convolutions, averages over images as means.

    Placed products with constant weights alone; tensors keep their names. What is given is not changed.
    """
    if not placement.onednn:
        return model, placement, qparams
    copy = ir.from_proto(ir.to_proto(model))
    decisions, scales = dict(placement.decisions), dict(qparams)
    moves = set()
    for node in list(copy.graph):
        if node.op_type == "Gemm" and _is_placed(node, placement):
            moves.add(str(node.name))
            _as_convolution(copy.graph, node, decisions, scales)
        elif node.op_type == "GlobalAveragePool" and rank(node.inputs[0]) == 4:
            axes = add_initializer(copy.graph, f"{node.name}.axes", [2, 3])
            replace_node(node, "ReduceMean", [node.inputs[0], axes], {"keepdims": 1})
    return copy, replace(placement, decisions=decisions, kept_float=placement.kept_float | moves), scales


def _is_placed(node: ir.Node, placement: Placement) -> bool:
    """Whether the product is computed with integers: its matrix is rounded, its weights are constant."""
    source, weight = node.inputs[:2]
    if source is None or weight is None or constant_value(weight) is None or attribute_int(node, "transA", 0):
        return False
    found = [placement.get(value_name(value)) for value in (source, weight)]
    if any(decision is None or decision.spec is None for decision in found) or len(list(weight.uses())) > 1:
        return False
    consumers = found[0].consumers if found[0] is not None else None
    return consumers is None or str(node.name) in consumers


def _as_convolution(
    graph: ir.Graph, node: ir.Node, decisions: dict[str, Decision], scales: dict[str, QParams]
) -> None:  # fmt: skip
    """y [N, O] = flatten(conv(x [N, K, 1, 1], w [O, K, 1, 1])); the sums are rounded, if they are, where y is."""
    source, weight = node.inputs[:2]
    array = constant_value(weight)
    assert source is not None
    assert weight is not None
    assert array is not None
    rows = array if attribute_int(node, "transB", 0) else array.T
    images = None if source.shape is None else source.shape[0]
    axes = add_initializer(graph, f"{node.name}.axes", [2, 3])
    image = insert_before(node, "Unsqueeze", [source, axes], output=f"{source.name}.image")
    image.type, image.shape = source.type, ir.Shape([images, rows.shape[1], 1, 1])
    reader = image.producer()
    assert reader is not None
    kernel = add_initializer(graph, f"{weight.name}.kernel", rows[:, :, None, None])
    name = f"{node.outputs[0].name}.sums"
    sums = insert_before(node, "Conv", [image, kernel, *node.inputs[2:]], _KERNEL, output=name)
    sums.type, sums.shape = source.type, ir.Shape([images, len(rows), 1, 1])
    old, data = decisions[value_name(source)], value_name(image)
    decisions[data] = replace(
        old, tensor=data, shares=old.shares or old.tensor, fused=False, consumers=None, reason="the same numbers"
    )
    if old.consumers is not None:  # the product is no longer among the readers, what makes its image is
        decisions[old.tensor] = replace(old, consumers=old.consumers - {str(node.name)} | {str(reader.name)})
    _move_weight(decisions, scales, value_name(weight), value_name(kernel))
    why = "the sums of a product, rounded, if at all, behind the convolution"
    decisions[value_name(sums)] = Decision(value_name(sums), "activation", None, why)
    replace_node(node, "Flatten", [sums], {"axis": 1})


def _move_weight(decisions: dict[str, Decision], scales: dict[str, QParams], weight: str, kernel: str) -> None:
    """The decision and the scales of a weight, for the kernel [O, K, 1, 1] that is made of it."""
    placed, params = decisions.pop(weight), scales.pop(weight)
    assert placed.spec is not None
    spec = replace(placed.spec, axis=None if placed.spec.axis is None else 0)
    decisions[kernel] = replace(placed, tensor=kernel, spec=spec)
    scales[kernel] = QParams(spec, params.scale, params.zero_point)
