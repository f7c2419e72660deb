"""Averages and sums: integer sums over a window or over axes, divided by the requantization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fullquant.numerics.integer import fixed_point, requantize
from fullquant.numerics.qparams import FloatArray
from fullquant.runtime.convolution import split_pads
from fullquant.runtime.integer.tensors import Array, IntegerTensor, Job, Kernel
from fullquant.runtime.torch_ops import build_operation
from fullquant.runtime.torch_rules import attribute, ints_input

Tensor = torch.Tensor


def reduce(job: Job) -> Kernel:
    """GlobalAveragePool, ReduceMean, ReduceSum: sum of (q - z), times s_x / (s_y n) for an average of n."""
    node, ratio = job.node, job.operands[0].scale / job.scale_out
    axes = [2, 3] if node.op_type == "GlobalAveragePool" else ints_input(node, 1, "axes")
    keep = node.op_type == "GlobalAveragePool" or bool(attribute(node, "keepdims", 1))

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        x = tensors[0]
        over = tuple(range(x.q.ndim)) if axes is None else tuple(axes)
        count = math.prod(x.q.shape[axis] for axis in over)
        total = torch.from_numpy(x.q).sum(dim=over, keepdim=keep, dtype=torch.int64).numpy() - count * x.zero_point
        factor = fixed_point(ratio if node.op_type == "ReduceSum" else ratio / count)
        return job.finish(requantize(total, factor, job.rounding))

    return kernel


def average_pool(job: Job) -> Kernel:
    """Sums over windows, times s_x / (s_y n) with n the positions that count: all, or those inside the image."""
    node, ratio = job.node, job.operands[0].scale / job.scale_out
    operation = build_operation(node)
    window_sum = _window_sum(job)
    counts: dict[tuple[int, ...], FloatArray] = {}

    def count(shape: tuple[int, ...]) -> FloatArray:
        if shape not in counts:
            ones = torch.ones((1, 1, *shape))
            inside, mean = window_sum(ones), operation(ones)
            counts[shape] = np.maximum(np.rint((inside / mean).nan_to_num(1.0).numpy()), 1.0)
        return counts[shape]

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        x = tensors[0]
        data = torch.from_numpy(x.q).to(torch.float64) - x.zero_point
        total = window_sum(data).to(torch.int64).numpy()
        factor = fixed_point(ratio / count(tuple(x.q.shape[2:])).astype(np.float64))
        return job.finish(requantize(total, factor, job.rounding))

    return kernel


def _window_sum(job: Job) -> Callable[[Tensor], Tensor]:
    """Sums over the windows of an AveragePool, zeros outside."""
    node = job.node
    kernel = tuple(attribute(node, "kernel_shape"))
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    ceil_mode = bool(attribute(node, "ceil_mode", 0))
    padding, extra = split_pads(list(attribute(node, "pads", [0] * (2 * len(kernel)))))

    def window_sum(x: Tensor) -> Tensor:
        if extra is not None:
            x = F.pad(x, extra)
        return F.avg_pool2d(x, kernel, stride, tuple(padding), ceil_mode, True, divisor_override=1)

    return window_sum
