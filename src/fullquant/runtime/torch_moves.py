"""Torch rules of the operators that move, pick or resize values. See torch_ops.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import UnsupportedOperatorError
from fullquant.runtime.torch_more import reversed_slice, sampled_resize
from fullquant.runtime.torch_rules import Operation, Tensor, attribute, constant_input, ints_input, rule


@rule("Concat")
def _concat(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis"))
    return lambda *parts: torch.cat(parts, axis)


@rule("Reshape")
def _reshape(node: ir.Node) -> Operation:
    target = ints_input(node, 1)
    if target is None:
        raise UnsupportedOperatorError(f"Reshape (node {node.name!r}) has no shape")
    keep_zero = bool(attribute(node, "allowzero", 0))

    def reshape(x: Tensor, *_: Tensor) -> Tensor:
        shape = [x.shape[i] if size == 0 and not keep_zero else size for i, size in enumerate(target)]
        return x.reshape(shape)

    return reshape


@rule("Flatten")
def _flatten(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", 1))

    def flatten(x: Tensor) -> Tensor:
        split = axis if axis >= 0 else x.ndim + axis
        return x.reshape(math.prod(x.shape[:split]), -1)

    return flatten


@rule("Transpose")
def _transpose(node: ir.Node) -> Operation:
    order = attribute(node, "perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


@rule("Squeeze", "Unsqueeze")
def _squeeze(node: ir.Node) -> Operation:
    axes = ints_input(node, 1, "axes")
    if node.op_type == "Squeeze":
        return lambda x, *_: x.squeeze() if axes is None else x.squeeze(tuple(axes))

    def unsqueeze(x: Tensor, *_: Tensor) -> Tensor:
        rank = x.ndim + len(axes or [])
        for axis in sorted(a % rank for a in axes or []):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


@rule("Slice")
def _slice(node: ir.Node) -> Operation:
    starts, ends = ints_input(node, 1) or [], ints_input(node, 2) or []
    axes = ints_input(node, 3) or list(range(len(starts)))
    steps = ints_input(node, 4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        return reversed_slice(node)

    def cut(x: Tensor, *_: Tensor) -> Tensor:
        index: list[slice] = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(start, end, step)
        return x[tuple(index)]

    return cut


@rule("Pad")
def _pad(node: ir.Node) -> Operation:
    mode = attribute(node, "mode", "constant")
    pads, axes = ints_input(node, 1) or [], ints_input(node, 3)
    value = constant_input(node, 2)
    fill = 0.0 if value is None else float(value)
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise UnsupportedOperatorError(f"Pad (node {node.name!r}) has mode {mode!r}")

    def pad(x: Tensor, *_: Tensor) -> Tensor:
        begin, end = [0] * x.ndim, [0] * x.ndim
        half = len(pads) // 2
        for k, axis in enumerate(axes if axes is not None else range(x.ndim)):
            begin[axis], end[axis] = pads[k], pads[half + k]
        flat: list[int] = []
        for b, e in zip(reversed(begin), reversed(end), strict=True):
            flat += [b, e]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        if mode == "constant":
            return F.pad(x, flat, names[mode], fill)
        return F.pad(x, flat + [0] * (2 * (x.ndim - 2) - len(flat)), names[mode])

    return pad


@rule("Split")
def _split(node: ir.Node) -> Operation:
    axis, sizes, count = int(attribute(node, "axis", 0)), ints_input(node, 1), len(node.outputs)

    def split(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, sizes if sizes is not None else math.ceil(x.shape[axis] / count), axis)

    return split


@rule("Expand")
def _expand(node: ir.Node) -> Operation:
    # Only the batch may be computed: see passes.batch_expand.
    shape = node.inputs[1]
    target = None if shape is not None and shape.const_value is None else ints_input(node, 1) or []

    def expand(x: Tensor, *computed: Tensor) -> Tensor:
        sizes = computed[0].tolist() if target is None else target
        return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes)))

    return expand


@rule("Shape")
def _shape(node: ir.Node) -> Operation:
    start, end = int(attribute(node, "start", 0)), attribute(node, "end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@rule("Tile")
def _tile(node: ir.Node) -> Operation:
    repeats = tuple(ints_input(node, 1) or [])
    return lambda x, *_: x.repeat(repeats)


@rule("Gather")
def _gather(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", 0))

    def gather(x: Tensor, index: Tensor) -> Tensor:
        picked = torch.where(index < 0, index + x.shape[axis], index).reshape(-1).to(torch.int64)
        shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :] if axis >= 0 else None
        taken = x.index_select(axis, picked)
        return (
            taken.reshape(shape)
            if shape is not None
            else taken.reshape(*x.shape[:axis], *index.shape, *x.shape[x.ndim + axis + 1 :])
        )

    return gather


@rule("ArgMax")
def _arg_max(node: ir.Node) -> Operation:
    axis, keep = int(attribute(node, "axis", 0)), bool(attribute(node, "keepdims", 1))
    return lambda x: torch.argmax(x, axis, keep)


@rule("Cast")
def _cast(node: ir.Node) -> Operation:
    kinds = {ir.DataType.FLOAT: torch.float32, ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32,
             ir.DataType.BOOL: torch.bool, ir.DataType.DOUBLE: torch.float64}  # fmt: skip
    kind = ir.DataType(int(attribute(node, "to")))
    if kind not in kinds:
        raise UnsupportedOperatorError(f"Cast (node {node.name!r}) to {kind.name}")
    return lambda x: x.to(kinds[kind])


@rule("DepthToSpace")
def _depth_to_space(node: ir.Node) -> Operation:
    block = int(attribute(node, "blocksize"))
    if attribute(node, "mode", "DCR") == "CRD":
        return lambda x: F.pixel_shuffle(x, block)

    def depth_first(x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        split = x.reshape(n, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return split.reshape(n, channels // block**2, height * block, width * block)

    return depth_first


@rule("Resize")
def _resize(node: ir.Node) -> Operation:
    mode = attribute(node, "mode", "nearest")
    transform = attribute(node, "coordinate_transformation_mode", "half_pixel")
    scales, sizes = constant_input(node, 2), constant_input(node, 3)
    nearest = mode == "nearest" and transform == "asymmetric" and attribute(node, "nearest_mode", "") == "floor"
    linear = mode == "linear" and transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not (nearest or linear):
        return sampled_resize(node)
    align = None if nearest else transform == "align_corners"
    sampled = sampled_resize(node)

    def resize(x: Tensor, *_: Any) -> Tensor:
        if sizes is not None and sizes.size:
            size = tuple(int(s) for s in sizes[-2:])
        else:
            exact = [n * float(s) for n, s in zip(x.shape[2:], scales[2:], strict=True)]  # type: ignore[index]
            if any(n != math.floor(n) for n in exact):  # torch would take the quotient of the sizes for the factor
                return sampled(x)  # type: ignore[no-any-return]
            size = tuple(int(n) for n in exact)
        return F.interpolate(x, size, mode="nearest" if nearest else "bilinear", align_corners=align)

    return resize
