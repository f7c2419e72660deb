"""Softmax and normalisation of one integer tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fullquant.graph.edit import attribute_float, attribute_int, constant_value, input_at
from fullquant.numerics import integer_functions
from fullquant.runtime.integer.tensors import Array, IntegerTensor, Job, Kernel, RefusalError


def softmax(job: Job) -> Kernel:
    """Softmax and LogSoftmax along one axis, by a table of exponentials."""
    axis = attribute_int(job.node, "axis", -1)
    function = integer_functions.softmax if job.node.op_type == "Softmax" else integer_functions.log_softmax
    scale = job.operands[0].scale
    return lambda tensors: job.finish(function(tensors[0].centred(), scale, job.scale_out, axis))


def layer_norm(job: Job) -> Kernel:
    """LayerNormalization over the axes from `axis` on; its parameters become multipliers."""
    node, scale = job.node, job.operands[0].scale
    if len([v for v in node.outputs if v.name]) != 1:
        raise RefusalError("its mean and deviation are outputs too")
    axis, epsilon = attribute_int(node, "axis", -1), attribute_float(node, "epsilon", 1e-5)
    gain = _parameter(job, 1)
    offset = _parameter(job, 2) if input_at(node, 2) is not None else np.zeros(1)

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        x = tensors[0].centred()
        axes = tuple(range(axis % x.ndim, x.ndim))
        return job.finish(integer_functions.layer_norm(x, scale, job.scale_out, axes, epsilon, gain, offset))

    return kernel


def batch_norm(job: Job) -> Kernel:
    """BatchNormalization that no layer could take in: one multiplier and one addend for each channel."""
    gain, offset, mean, variance = (_parameter(job, index) for index in range(1, 5))
    factor = gain / np.sqrt(variance + attribute_float(job.node, "epsilon", 1e-5))
    addend = (offset - mean * factor) / job.scale_out
    factor = factor * job.operands[0].scale / job.scale_out

    def kernel(tensors: Sequence[IntegerTensor]) -> Array:
        x = tensors[0].centred()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return job.finish(integer_functions.affine_map(x, factor.reshape(shape), addend.reshape(shape)))

    return kernel


def _parameter(job: Job, index: int) -> integer_functions.FloatTable:
    array = constant_value(input_at(job.node, index))
    if array is None:
        raise RefusalError("a parameter of it is computed at run time")
    return np.asarray(array, dtype=np.float64)
