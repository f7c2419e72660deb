"""Torch rules of rarer operators: comparison and logic, sorting, transposed convolution, instance normalization.

See torch_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import UnsupportedOperatorError
from fullquant.runtime.torch_rules import BUILDERS, Operation, Tensor, attribute, constant_input, ints_input, rule

_ELEMENTWISE: dict[str, Operation] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
}


def _plain(function: Operation) -> Callable[[ir.Node], Operation]:
    return lambda node: function


for _name, _function in _ELEMENTWISE.items():
    BUILDERS[_name] = _plain(_function)


@rule("Mod")
def _mod(node: ir.Node) -> Operation:
    return torch.fmod if attribute(node, "fmod", 0) else torch.remainder


@rule("ReduceMin")
def _reduce_min(node: ir.Node) -> Operation:
    axes, keep = ints_input(node, 1, "axes"), bool(attribute(node, "keepdims", 1))

    def reduce(x: Tensor, *_: Tensor) -> Tensor:
        return torch.amin(x, dim=tuple(axes) if axes else tuple(range(x.ndim)), keepdim=keep)

    return reduce


@rule("ReduceProd")
def _reduce_prod(node: ir.Node) -> Operation:
    axes, keep = ints_input(node, 1, "axes"), bool(attribute(node, "keepdims", 1))

    def reduce(x: Tensor, *_: Tensor) -> Tensor:
        for axis in sorted((a % x.ndim for a in (axes or range(x.ndim))), reverse=True):
            x = torch.prod(x, axis, keepdim=keep)
        return x

    return reduce


@rule("TopK")
def _top_k(node: ir.Node) -> Operation:
    (count,) = ints_input(node, 1) or [1]
    axis, largest = int(attribute(node, "axis", -1)), bool(attribute(node, "largest", 1))

    def top_k(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # stable, since ONNX takes the lower index of equal elements
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)

    return top_k


@rule("ArgMin")
def _arg_min(node: ir.Node) -> Operation:
    axis, keep = int(attribute(node, "axis", 0)), bool(attribute(node, "keepdims", 1))
    return lambda x: torch.argmin(x, axis, keep)


@rule("GatherElements")
def _gather_elements(node: ir.Node) -> Operation:
    axis = int(attribute(node, "axis", 0))

    def gather(x: Tensor, index: Tensor) -> Tensor:
        return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).to(torch.int64))

    return gather


@rule("CumSum")
def _cum_sum(node: ir.Node) -> Operation:
    axis = int((ints_input(node, 1) or [0])[0])
    exclusive, reverse = bool(attribute(node, "exclusive", 0)), bool(attribute(node, "reverse", 0))

    def cum_sum(x: Tensor, *_: Tensor) -> Tensor:
        turned = x.flip(axis) if reverse else x
        total = torch.cumsum(turned, axis) - (turned if exclusive else 0)
        return total.flip(axis) if reverse else total

    return cum_sum


@rule("Trilu")
def _trilu(node: ir.Node) -> Operation:
    (diagonal,) = ints_input(node, 1) or [0]
    function = torch.triu if attribute(node, "upper", 1) else torch.tril
    return lambda x, *_: function(x, diagonal)


@rule("InstanceNormalization")
def _instance_norm(node: ir.Node) -> Operation:
    epsilon = float(attribute(node, "epsilon", 1e-5))

    def instance_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - mean) * (variance + epsilon).rsqrt() * scale.reshape(shape) + bias.reshape(shape)

    return instance_norm


@rule("ConvTranspose")
def _conv_transpose(node: ir.Node) -> Operation:
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    pads, extra = attribute(node, "pads", [0, 0, 0, 0]), attribute(node, "output_padding", [0, 0])
    groups = int(attribute(node, "group", 1))
    if len(strides) != 2 or attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "output_shape"):
        raise UnsupportedOperatorError(f"ConvTranspose (node {node.name!r}) is not 2-D with explicit pads")

    def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        whole = F.conv_transpose2d(x, weight, bias, strides, 0, 0, groups, dilations)
        below, right = extra[0] - pads[2], extra[1] - pads[3]
        # what output_padding adds lies beyond every window: the bias alone
        if below > 0 or right > 0:
            grown = F.pad(whole, [0, max(right, 0), 0, max(below, 0)])
            if bias is not None:
                inside = F.pad(torch.ones_like(whole[:1, :1]), [0, max(right, 0), 0, max(below, 0)])
                grown = grown + (1 - inside) * bias.reshape(1, -1, 1, 1)
            whole = grown
        height = whole.shape[2] + min(below, 0)
        width = whole.shape[3] + min(right, 0)
        return whole[:, :, pads[0] : height, pads[1] : width]

    return conv_transpose


def reversed_slice(node: ir.Node) -> Operation:
    """Slice with negative steps: the elements picked by their indices, as Python's slices pick them."""
    starts, ends = ints_input(node, 1) or [], ints_input(node, 2) or []
    axes = ints_input(node, 3) or list(range(len(starts)))
    steps = ints_input(node, 4) or [1] * len(starts)

    def cut(x: Tensor, *_: Tensor) -> Tensor:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            size = x.shape[axis]
            # an end below -size means "past the first element", which Python's slices write as None
            last = None if step < 0 and end < -size else end
            index = list(range(size))[slice(start, last, step)]
            x = x.index_select(axis, torch.tensor(index, dtype=torch.int64, device=x.device))
        return x

    return cut


def sampled_resize(node: ir.Node) -> Operation:
    """Resize of an NCHW map by sampling positions: cubic, factors, and coordinates that torch has no name for.

    Weights along each axis are a matrix [output, input], made once per input size; source: ONNX operator specification.
    """
    mode, transform = (
        attribute(node, "mode", "nearest"),
        attribute(node, "coordinate_transformation_mode", "half_pixel"),
    )
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    coefficient = float(attribute(node, "cubic_coeff_a", -0.75))
    scales, sizes = constant_input(node, 2), constant_input(node, 3)
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        raise UnsupportedOperatorError(f"Resize (node {node.name!r}) with mode {mode}, {transform}")

    def positions(size: int, count: int, scale: float) -> Tensor:
        out = torch.arange(count, dtype=torch.float32)  # as runtimes do: ties are ties
        if transform == "align_corners":
            return out * (size - 1) / (count - 1) if count > 1 else out
        if transform == "asymmetric":
            return out / scale
        return (out + 0.5) / scale - 0.5 if not (transform == "pytorch_half_pixel" and count == 1) else out * 0

    def weights(size: int, count: int, scale: float) -> Tensor:
        at = positions(size, count, scale).to(torch.float64)
        matrix = torch.zeros(count, size, dtype=torch.float64)
        for offset, share in _shares(at, mode, rounding, coefficient):
            column = (offset.to(torch.int64)).clamp(0, size - 1)
            matrix.scatter_add_(1, column[:, None], share[:, None])
        return matrix.to(torch.float32)

    def resize(x: Tensor, *_: Tensor) -> Tensor:
        for axis in (2, 3):
            size = x.shape[axis]
            if sizes is not None and sizes.size:
                count, scale = int(sizes[axis - 4]), int(sizes[axis - 4]) / size
            else:
                scale = float(scales[axis])  # type: ignore[index]
                count = int(size * scale)
            if count != size:
                matrix = weights(size, count, scale).to(x.device)
                x = torch.matmul(x, matrix.t()) if axis == 3 else torch.matmul(matrix, x)
        return x

    return resize


def _shares(at: Tensor, mode: str, rounding: str, a: float) -> list[tuple[Tensor, Tensor]]:
    """(position, weight) pairs of each output element; positions beyond the border count as the border."""
    if mode == "nearest":
        nearest: dict[str, Operation] = {
            "floor": torch.floor,
            "ceil": torch.ceil,
            "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
            "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
        }
        return [(nearest[rounding](at), torch.ones_like(at))]
    floor = torch.floor(at)
    t = at - floor
    if mode == "linear":
        return [(floor, 1 - t), (floor + 1, t)]

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((d - 5) * d + 8) * d * a - 4 * a

    return [(floor - 1, far(t + 1)), (floor, near(t)), (floor + 1, near(1 - t)), (floor + 2, far(2 - t))]
