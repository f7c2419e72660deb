"""Single-pass CPU kernels, compiled by numba when first used and kept in numba's cache; no C compiler is needed.

All arrays are one-dimensional views of dense tensors, in the order in which the tensor lies in memory: per_tensor
fake-quantize is the same for every layout. Numba releases the GIL and takes as many threads as torch uses.

Each loop runs over a slice of its arrays, never over `range(a, b)` of the whole: only for an index that starts at zero
numba knows that none is negative, and only then the loop becomes vector instructions (measured: three to four times
as fast).
"""

from fullquant.runtime.kernels.depthwise import depthwise5_weight_gradient
from fullquant.runtime.kernels.fake_quantize import (
    channels_backward,
    channels_forward,
    set_threads,
    tensor_backward,
    tensor_forward,
)
from fullquant.runtime.kernels.fused import (
    hard_swish_backward,
    hard_swish_forward,
    scaled_backward,
    scaled_forward,
    sum_backward,
    sum_forward,
)
from fullquant.runtime.kernels.many import channel_jobs, many_backward, many_forward
from fullquant.runtime.kernels.rounding import channel_products, compensated_rounding
from fullquant.runtime.kernels.statistics import (
    add_to_histogram,
    channel_errors,
    channel_moments,
    error_dots,
    value_range,
)
from fullquant.runtime.kernels.vectors import use_whole_vectors

# In time: what is imported above is compiled when it is called.
use_whole_vectors()

__all__ = [
    "add_to_histogram",
    "channel_errors",
    "channel_jobs",
    "channel_moments",
    "channel_products",
    "channels_backward",
    "channels_forward",
    "compensated_rounding",
    "depthwise5_weight_gradient",
    "error_dots",
    "hard_swish_backward",
    "hard_swish_forward",
    "many_backward",
    "many_forward",
    "scaled_backward",
    "scaled_forward",
    "set_threads",
    "sum_backward",
    "sum_forward",
    "tensor_backward",
    "tensor_forward",
    "value_range",
]
