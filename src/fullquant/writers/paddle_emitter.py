"""What an operator rule of `paddle_ops` sees: the node, its variables, and a program to add operators to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams
from fullquant.writers.paddle_builder import Array, Attribute, Names, ProgramBuilder
from fullquant.writers.paddle_quantization import Quantization, absmax


class Emitter:
    """Writes one graph node after the other; every method speaks about the current node.

    A tensor that is rounded exists twice, as in PaddleSlim's files: `t` is computed, `t.quantized.dequantized` is read.
    Of a rounded graph output the fetched variable has the source's name, so the computed one is `t.unrounded`.
    """

    def __init__(self, builder: ProgramBuilder, quantization: Quantization) -> None:
        self.builder = builder
        self._quantization = quantization
        self._computed: dict[str, str] = {}  # tensor -> variable with its float value
        self._rounded: dict[str, str] = {}  # tensor -> variable with its value after Q/DQ
        self._node: ir.Node | None = None

    # --- the current node ------------------------------------------------------------------------------------------

    @property
    def node(self) -> ir.Node:
        assert self._node is not None
        return self._node

    def enter(self, node: ir.Node) -> None:
        """Makes `node` current and declares its outputs."""
        self._node = node
        for value in node.outputs:
            if value.name:
                self.define(value)

    def leave(self) -> None:
        """Adds Q/DQ behind the outputs of the current node."""
        for value in self.node.outputs:
            if value.name:
                self.round(value)

    def refuse(self, what: str, remedy: str) -> ExportError:
        """The error for a node that cannot be written."""
        where = f"{self.node.op_type!r} (node {self.node.name!r})"
        return ExportError(f"Paddle program: {where}: {what}; {remedy}")

    # --- attributes ------------------------------------------------------------------------------------------------

    def int_attribute(self, name: str, default: int) -> int:
        """An integer attribute of the ONNX node."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def float_attribute(self, name: str, default: float) -> float:
        """A float attribute of the ONNX node."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def string_attribute(self, name: str, default: str) -> str:
        """A string attribute of the ONNX node."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def ints_attribute(self, name: str, default: Sequence[int]) -> list[int]:
        """A list-of-integers attribute of the ONNX node."""
        attribute = self.node.attributes.get(name)
        return list(default if attribute is None else attribute.as_ints())

    @property
    def clamps_by_clip(self) -> bool:
        """Whether ReLU and ReLU6 are written as clip, see placement.rules.Target."""
        return self._quantization.onednn

    @property
    def products_in_float(self) -> bool:
        """Whether the current node is a product that the runtime is to compute in float."""
        return self._quantization.is_kept_float(self.node)

    # --- inputs ----------------------------------------------------------------------------------------------------

    def value(self, index: int) -> ir.Value | None:
        """The value at an input, None where it is left out."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def required(self, index: int) -> ir.Value:
        """The value at an input. Raises ExportError where it is left out."""
        value = self.value(index)
        if value is None:
            raise self.refuse(f"input {index} is missing", "the graph is not valid ONNX, check it with onnx.checker")
        return value

    def read(self, index: int) -> str:
        """The variable that the node reads at an input: the rounded one where the placement says so."""
        value = self.required(index)
        if value.const_value is not None:
            return self._constant_variable(value)
        name = str(value.name)
        if name not in self._computed:
            raise self.refuse(f"{name!r} is read before it is computed", "sort the graph with Graph.sort()")
        if name in self._rounded and self._quantization.reads_rounded(name, self.node.name):
            return self._rounded[name]
        return self._computed[name]

    def rank(self, index: int) -> int | None:
        """Number of axes of an input, None where it is unknown."""
        shape = self.required(index).shape
        return None if shape is None else len(shape)

    def constant(self, index: int) -> Array | None:
        """Content of an input that must be constant, None where it is left out. Raises ExportError for a variable."""
        value = self.value(index)
        if value is None:
            return None
        if value.const_value is None:
            raise self.refuse(
                f"input {index} ({value.name!r}) is computed at run time",
                "give input_shape when reading the model, so that it becomes a constant",
            )
        return np.asarray(value.const_value.numpy())

    def operand(self, index: int) -> Array | None:
        """`constant` in float32, on its grid where it is placed: for operators that take no dequantize_linear there."""
        array = self.constant(index)
        if array is None:
            return None
        qparams = self._quantization.weight(str(self.required(index).name))
        values = np.asarray(array, dtype=np.float32)
        return values if qparams is None else affine.fake_quantize(values, qparams)

    def constant_ints(self, index: int) -> list[int] | None:
        """`constant` as a flat list of integers."""
        array = self.constant(index)
        return None if array is None else [int(item) for item in array.reshape(-1)]

    def without_scale(self, index: int) -> str:
        """`read`, or a copy of it that has no scale: for an operator that the runtime is to compute in float."""
        source, value = self.read(index), self.required(index)
        if not self._quantization.is_kept_float(self.node) or str(value.name) not in self._rounded:
            return source
        copy = self.temporary(f"operand{index}", dims_of(value))
        self.builder.add_operator("assign", {"X": [source]}, {"Out": [copy]}, {})
        return copy

    def transposed_weight(self, index: int) -> str | None:
        """A placed constant [K, N] as int8 [N, K] behind a dequantize_linear; None for anything else."""
        value = self.required(index)
        qparams = None if value.const_value is None else self._quantization.weight(str(value.name))
        if value.const_value is None or qparams is None or len(value.const_value.shape) != 2:
            return None
        name = self.builder.unique_name(f"{value.name}.transposed")
        array = affine.quantize(np.asarray(value.const_value.numpy()), qparams).astype(np.int8).T
        self.builder.add_parameter(name, np.ascontiguousarray(array))
        axis = None if qparams.spec.axis is None else 1 - qparams.spec.axis % 2
        return self._add_dequantizer(name, array.shape, absmax(qparams).reshape(-1), axis)

    # --- outputs and operators -------------------------------------------------------------------------------------

    def output(self, index: int = 0) -> str:
        """The variable for an output of the node."""
        return self._computed[str(self.node.outputs[index].name)]

    def temporary(self, suffix: str, shape: Sequence[int] | None = None, dtype: type = np.float32) -> str:
        """A new variable `<first output>.<suffix>`, by default of the first output's shape."""
        value = self.node.outputs[0]
        name = self.builder.unique_name(f"{value.name}.{suffix}")
        self.builder.declare(name, np.dtype(dtype), dims_of(value) if shape is None else shape)
        return name

    def op(self, kind: str, inputs: Names, outputs: Names, **attributes: Attribute) -> None:
        """Adds a Paddle operator that computes the node, or a part of it.

        Every part gets the abs-max of the node's first output as `out_threshold`: the parts become one kernel, whose
        output scale that is. Paddle Lite needs it on the operators around a tensor without Q/DQ (a convolution and its
        bias, a `fused` tensor and its ReLU): where it is missing on one of them, that one falls back to float.
        It holds for all outputs of an operator, so beside an output XShape, which is no real tensor, the name that
        means `Out` alone stands in its place.
        skip_quant, as PaddleSlim has it: oneDNN's passes leave the operator in float.
        """
        threshold = self._quantization.threshold(str(self.node.outputs[0].name))
        if threshold is not None:
            attributes["Out0_threshold" if "XShape" in outputs else "out_threshold"] = threshold
        if self._quantization.is_kept_float(self.node):
            attributes["skip_quant"] = 1
        self.builder.add_operator(kind, inputs, outputs, attributes)

    def product(self, kind: str, parameters: tuple[str, str, str], target: str, **attributes: Attribute) -> None:
        """Adds the convolution or matrix product of inputs 0 and 1 that is written to the variable `target`.

        parameters: what the operator calls its first input, its second one, and its output.
        """
        first, second, output = parameters
        inputs = {first: [self.read(0)], second: [self.read(1)]}
        self.op(kind, inputs, {output: [target]}, **attributes)

    # --- variables -------------------------------------------------------------------------------------------------

    def define(self, value: ir.Value) -> None:
        """Declares the variable of an input or a computed value."""
        name = str(value.name)
        variable = name
        if value.is_graph_output() and not value.is_graph_input() and self._rounds_output(name):
            variable = self.builder.unique_name(f"{name}.unrounded")
        self.builder.declare(variable, dtype_of(value), dims_of(value))
        self._computed[name] = variable

    def round(self, value: ir.Value) -> None:
        """Adds quantize_linear and dequantize_linear behind a computed value that is placed so."""
        name = str(value.name)
        qparams = self._quantization.activation(name)
        if qparams is None:
            return
        renamed = self._computed[name] != name
        target = name if renamed else self.builder.unique_name(f"{name}.quantized.dequantized")
        quantized = self.builder.unique_name(f"{name}.quantized")
        bits = qparams.spec.bits
        attributes = _rounding_attributes(bits, -1)
        scale = self.builder.add_parameter(self.builder.unique_name(f"{name}@scale"), absmax(qparams, bits).reshape(1))
        self.builder.declare(quantized, np.dtype(np.float32), dims_of(value))
        self.builder.declare(target, np.dtype(np.float32), dims_of(value))
        for kind, source, result in (
            ("quantize_linear", self._computed[name], quantized),
            ("dequantize_linear", quantized, target),
        ):
            self._add_linear(kind, source, scale, result, attributes)
        self._rounded[name] = target

    def fetched(self, value: ir.Value) -> str:
        """The variable to fetch for a graph output: rounded, unless the placement keeps the outputs float."""
        name = str(value.name)
        if name not in self._computed:
            raise ExportError(f"the graph output {name!r} is not computed; remove it from the outputs")
        if name in self._rounded and self._quantization.reads_rounded(name, None):
            return self._rounded[name]
        return self._computed[name]

    def parameter(self, name: str, array: Array) -> str:
        """Stores a constant of the current node under `name`, or a name like it where that one is taken."""
        name = self.builder.unique_name(name) if self.builder.is_declared(name) else name
        return self.builder.add_parameter(name, array)

    def bias(self, index: int, weight: int) -> Array | None:
        """Content of a bias input as integer kernels use it; `weight` is the index of the weight input."""
        values = self.constant(index)
        if values is None:
            return None
        activation, weights = str(self.required(0).name), str(self.required(weight).name)
        name = str(self.required(index).name)
        return self._quantization.bias(name, np.asarray(values, dtype=np.float32).reshape(-1), activation, weights)

    def _rounds_output(self, name: str) -> bool:
        return self._quantization.activation(name) is not None and self._quantization.reads_rounded(name, None)

    def _constant_variable(self, value: ir.Value) -> str:
        """Stores a constant at its first use; a placed one as int8 with a dequantize_linear behind it."""
        name = str(value.name)
        assert value.const_value is not None
        if name not in self._computed:
            array = np.asarray(value.const_value.numpy())
            if self._quantization.is_bias(name):
                return self.parameter(name, self._bias_of_product(value, array))
            qparams = self._quantization.weight(name)
            if qparams is not None and self._is_read_as_float(value):
                array, qparams = affine.fake_quantize(array, qparams), None
            if qparams is not None:
                array = affine.quantize(array, qparams).astype(np.int8)
            self._computed[name] = self.builder.add_parameter(name, array)
            if qparams is not None:
                self._dequantize_constant(name, array.shape, qparams)
        rounded = name in self._rounded and self._quantization.reads_rounded(name, self.node.name)
        if name in self._rounded and not rounded:
            raise self.refuse(f"reads {name!r} as float while others read it as int8", "give it a copy of the constant")
        return self._rounded[name] if rounded else self._computed[name]

    def _is_read_as_float(self, value: ir.Value) -> bool:
        """A constant that no layer reads, of a runtime that takes away its dequantize_linear and reads integers."""
        readers = {use.node.op_type for use in value.uses()}
        return self._quantization.onednn and not readers & {"Conv", "Gemm", "MatMul"}

    def _bias_of_product(self, value: ir.Value, array: Array) -> Array:
        """Content of a bias that an Add node puts on a matrix product, as integer kernels use it."""
        others = [other for other in self.node.inputs if other is not None and other is not value]
        product = others[0].producer() if len(others) == 1 else None
        if product is None or len(product.inputs) < 2 or product.inputs[0] is None or product.inputs[1] is None:
            raise self.refuse(f"{value.name!r} is placed as a bias but added to no product", "place it as a constant")
        activation, weights = str(product.inputs[0].name), str(product.inputs[1].name)
        return self._quantization.bias(str(value.name), np.asarray(array, dtype=np.float32), activation, weights)

    def _dequantize_constant(self, name: str, shape: Sequence[int], qparams: QParams) -> None:
        self._rounded[name] = self._add_dequantizer(name, shape, absmax(qparams).reshape(-1), qparams.spec.axis)

    def _add_dequantizer(self, name: str, shape: Sequence[int], peaks: Array, axis: int | None) -> str:
        """The variable behind the dequantize_linear of an int8 parameter; peaks: its abs-max, one or along the axis."""
        scale = self.builder.add_parameter(self.builder.unique_name(f"{name}@scale"), peaks)
        target = self.builder.unique_name(f"{name}.quantized.dequantized")
        self.builder.declare(target, np.dtype(np.float32), shape or [1])
        attributes = _rounding_attributes(8, -1 if axis is None else axis % len(shape))
        self._add_linear("dequantize_linear", name, scale, target, attributes)
        return target

    def _add_linear(self, kind: str, source: str, scale: str, target: str, attributes: Mapping[str, Attribute]) -> None:
        """Adds quantize_linear or dequantize_linear. Each has a ZeroPoint of its own, int32 zeros, one per scale."""
        size = self.builder.shape_of_parameter(scale)
        zero_point = self.builder.unique_name(f"{target}@zero_point")
        self.builder.add_parameter(zero_point, np.zeros(size, dtype=np.int32))
        inputs = {"X": [source], "Scale": [scale], "ZeroPoint": [zero_point]}
        self.builder.add_operator(kind, inputs, {"Y": [target]}, attributes)


def _rounding_attributes(bit_length: int, quant_axis: int) -> dict[str, Attribute]:
    """Attributes of quantize_linear and dequantize_linear: Paddle 2 and Lite read `bit_length`, Paddle 3 `qmax`."""
    half = 2 ** (bit_length - 1)
    return {
        "bit_length": bit_length,
        "quant_axis": quant_axis,
        "qmin": -half,
        "qmax": half - 1,
        "round_type": 0,
        "moving_rate": 0.9,
        "is_test": True,
        "only_observer": False,
    }


def dims_of(value: ir.Value) -> list[int]:
    """Paddle's dims of a value: -1 for every size that is not a number, [] where nothing is known."""
    return [] if value.shape is None else [dim if isinstance(dim, int) else -1 for dim in value.shape]


def dtype_of(value: ir.Value) -> np.dtype:
    """Element type of a value; float32 where it is not recorded."""
    return np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy())
