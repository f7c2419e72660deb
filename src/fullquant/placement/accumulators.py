"""Layers whose sums do not surely fit into the int32 accumulator of an integer kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.graph.edit import attribute_int, constant_value, input_at, value_name
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams
from fullquant.placement.constants import layer_bias
from fullquant.placement.decision import Placement

LIMIT = 2**31 - 1
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overflow:
    """A layer, and its worst output channel. bias: |b| / (scale_x * scale_w) there. bound: the largest sum possible."""

    layer: str
    bias_name: str
    channel: int
    bias: float
    bound: float

    def __str__(self) -> str:
        if self.bias >= LIMIT:  # a writer that cuts or wraps leaves exactly the end of the range
            what = f"is {self.bias:.4g} steps of scale_x * scale_w, beyond the {LIMIT} of int32"
        else:
            what = f"and its products can add up to {self.bound:.4g}, beyond the {LIMIT} of int32"
        return (
            f"bias {self.bias_name!r} of {self.layer!r}, channel {self.channel}, {what}: kernels that add integers "
            "give garbage; raise that channel's weight scale (fullquant quantize does), or keep the layer float"
        )


def overflows(model: ir.Model, placement: Placement, qparams: Mapping[str, QParams]) -> list[Overflow]:
    """Every layer with |b_q| + sum_k |w_q,k| max|x_q - z| > 2**31 - 1 in some channel (issue 11415 of onnxruntime)."""
    found = []
    for node in model.graph:
        sums = _sums(node, placement, qparams)
        if sums is None:
            continue
        bias, products = sums
        channel = int(np.argmax(bias + products))
        bound = float((bias + products)[channel])
        if bound > LIMIT:
            value = layer_bias(node)
            name = "" if value is None else value_name(value)
            found.append(Overflow(str(node.name), name, channel, float(bias[channel]), bound))
    return found


def _sums(node: ir.Node, placement: Placement, qparams: Mapping[str, QParams]) -> tuple[Reals, Reals] | None:
    """(|b| in steps, largest sum of products) per output channel; None where the node is no layer in integers."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    source, weight = node.inputs[0], input_at(node, 1)
    array = constant_value(weight)
    if source is None or weight is None or array is None:
        return None
    placed, params = placement.get(value_name(source)), qparams.get(value_name(weight))
    if placed is None or placed.spec is None or params is None or not _reads(placed.consumers, node):
        return None
    grid = qparams[placement.scale_owner(value_name(source))]
    reach = max(grid.spec.qmax - int(grid.zero_point), int(grid.zero_point) - grid.spec.qmin)
    axis = 0 if node.op_type == "Conv" or attribute_int(node, "transB", 0) else array.ndim - 1
    rows = np.moveaxis(np.abs(affine.quantize(array, params) - int(params.zero_point.max())), axis, 0)
    products = rows.reshape(len(rows), -1).sum(axis=1) * float(reach)
    bias = constant_value(layer_bias(node))
    step = float(grid.scale) * np.broadcast_to(params.scale.astype(np.float64), len(rows))
    steps = np.zeros(len(rows)) if bias is None else np.rint(np.abs(np.asarray(bias, np.float64).reshape(-1)) / step)
    return np.asarray(steps, np.float64), np.asarray(products, np.float64)


def _reads(consumers: frozenset[str] | None, node: ir.Node) -> bool:
    return consumers is None or str(node.name) in consumers
