"""Quantized constants of an ONNX file: integers on disk, DequantizeLinear in front of the reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.graph.edit import Array, constant_value, graph_of, value_name
from fullquant.numerics import affine
from fullquant.numerics.qparams import FloatArray, IntArray, QParams, QuantSpec

StorageType = Literal["int8", "uint8"]

_INT32_MAX = 2**31 - 1


def storage_offset(spec: QuantSpec, storage: StorageType, tensor: str) -> int:
    """What is added to q so that the grid fits into the storage type: q + 128 for a signed grid in uint8, and back.

    Raises ExportError for a grid of more than 8 bits.
    """
    low, high = (0, 255) if storage == "uint8" else (-128, 127)
    for offset in (0, 128, -128):
        if low <= spec.qmin + offset and spec.qmax + offset <= high:
            return offset
    raise ExportError(f"{tensor!r} has the grid [{spec.qmin}, {spec.qmax}], which {storage} cannot hold; use 8 bits")


def own_storage(spec: QuantSpec) -> StorageType:
    """The type that holds a grid of 8 bits without an offset."""
    return "uint8" if spec.qmin >= 0 else "int8"


@dataclass
class NameRegister:
    """Names of a graph; hands out new ones that nothing else has."""

    taken: set[str]
    counts: dict[str, int] = field(default_factory=dict)

    def reserve(self, base: str) -> str:
        """`base` if it is free, else base_1, base_2, ..."""
        name = base
        while name in self.taken:
            self.counts[base] = self.counts.get(base, 0) + 1
            name = f"{base}_{self.counts[base]}"
        self.taken.add(name)
        return name


class ConstantWriter:
    """Puts quantized constants into a graph. Every one has scale and zero point variables of its own."""

    def __init__(self, graph: ir.Graph, names: NameRegister) -> None:
        self._graph = graph
        self._names = names
        self._done: dict[tuple[str, StorageType], ir.Value] = {}

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A new initializer with a unique name made from `name`."""
        unique = self._names.reserve(name)
        tensor = ir.Tensor(np.array(array, order="C"), name=unique)
        value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def quantized(self, reader: ir.Node, value: ir.Value, qparams: QParams, storage: StorageType) -> ir.Value:
        """DequantizeLinear(integers) for a constant; one for all readers of the same constant."""
        name = value_name(value)
        done = self._done.get((name, storage))
        if done is not None:
            return done
        array = constant_value(value)
        if array is None:
            raise ExportError(f"{name!r} is placed as a weight but is computed at run time; place it as an activation")
        offset = storage_offset(qparams.spec, storage, name)
        integers = (affine.quantize(array, qparams) + offset).astype(storage)
        zero_point = (qparams.zero_point + offset).astype(storage)
        inputs = [
            self.initializer(f"{name}.quantized", integers),
            self.initializer(f"{name}.scale", qparams.scale),
            self.initializer(f"{name}.zero_point", zero_point),
        ]
        result = self._dequantize(reader, name, inputs, qparams.spec.axis, value)
        self._done[name, storage] = result
        return result

    def bias(self, reader: ir.Node, value: ir.Value, scale: FloatArray) -> ir.Value:
        """DequantizeLinear(int32) for a bias, q = round(b / scale); scale is () or (O,). One per reader.

        ONNX Runtime and OpenVINO add the integers to their int32 accumulators, and take it for granted that the scale
        is scale_x * scale_w. Raises ExportError where a bias doesn't fit into 32 bits.
        """
        name = value_name(value)
        integers = bias_integers(value, scale).astype(np.int32)
        axis = 0 if scale.ndim else None
        # No zero point: ONNX wants none, or zeros, for int32.
        inputs = [self.initializer(f"{name}.quantized", integers), self.initializer(f"{name}.scale", scale)]
        return self._dequantize(reader, name, inputs, axis, value)

    def rounded_bias(self, value: ir.Value, scale: FloatArray) -> ir.Value:
        """The same numbers as `bias`, in float32, for runtimes that take no int32 constants."""
        integers = bias_integers(value, scale)
        return self.initializer(f"{value_name(value)}.rounded", (integers * scale).astype(np.float32))

    def _dequantize(
        self, reader: ir.Node, name: str, inputs: list[ir.Value], axis: int | None, like: ir.Value
    ) -> ir.Value:
        node = ir.node("DequantizeLinear", inputs, {} if axis is None else {"axis": axis})
        node.name = self._names.reserve(f"{name}.dequantize")
        graph_of(reader).insert_before(reader, node)
        result = node.outputs[0]
        result.name = self._names.reserve(f"{name}.dequantized")
        result.shape, result.type = like.shape, ir.TensorType(ir.DataType.FLOAT)
        return result


def bias_integers(value: ir.Value, scale: FloatArray) -> IntArray:
    """round(b / scale), int64, shape of b. ExportError, naming tensor and channel, if one does not fit into int32."""
    name, array = value_name(value), constant_value(value)
    if array is None:
        raise ExportError(f"{name!r} is placed as a bias but is computed at run time; keep its layer float")
    if not np.all(scale > 0):
        raise ExportError(f"the scale of bias {name!r} is too small for float32; raise the scale of its weights")
    steps = np.rint(array.astype(np.float64) / scale.astype(np.float64))
    beyond = np.flatnonzero(~(np.abs(steps) <= _INT32_MAX))
    if beyond.size:
        channel = int(beyond[0])
        raise ExportError(
            f"bias {name!r} is {array.reshape(-1)[channel]:.4g} in channel {channel}, beyond int32 at scale "
            f"{np.broadcast_to(scale, array.shape).reshape(-1)[channel]:.4g}; raise that channel's weight scale"
        )
    return np.asarray(steps.astype(np.int64))
