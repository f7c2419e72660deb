"""The placed graph executed with integers: the reference between the simulation and the runtimes."""

from fullquant.runtime.integer.model import FloatNode, IntegerModel
from fullquant.runtime.integer.tensors import IntegerTensor

__all__ = ["FloatNode", "IntegerModel", "IntegerTensor"]
