"""The int8 file in PaddleSlim's older form (`onnx_format: false`), for Paddle Lite before 2.13.

Around a convolution or a matrix product with int8 weights, in PaddlePaddle's formulas (s_x, s_w: abs-max; 127 steps):

    fake_quantize_moving_average_abs_max   q_x = clip(round_half_even(127 / s_x * x), -128, 127)      float32
    conv2d, matmul_v2                      p = q_x * q_w                                 weights: integers in float32
    fake_channel_wise_dequantize_max_abs   y = p * s_w[c] * s_x / 127^2
    fake_dequantize_max_abs                the same with one s_w

Every other reader of a rounded tensor gets it from fake_quantize_dequantize_moving_average_abs_max, which PaddleSlim's
export leaves out. With it Paddle Inference computes the roundings, and Paddle Lite, where it becomes an input scale,
knows the scale of every tensor, not those in front of layers alone. `out_threshold` stands on operators as in the
newer form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams
from fullquant.writers.paddle_builder import Attribute, Names, ProgramBuilder
from fullquant.writers.paddle_emitter import Emitter, dims_of
from fullquant.writers.paddle_quantization import Quantization, absmax

_QMAX = 127
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ROUND_TRIP = "fake_quantize_dequantize_moving_average_abs_max"
_ROUNDING: dict[str, Attribute] = {"bit_length": 8, "round_type": 0, "moving_rate": 0.9, "is_test": True}


class FakeQuantizeEmitter(Emitter):
    """An Emitter that writes the older form.

    A rounded tensor `t` has up to two more: its integers `t.quantized` for layers, and `t.quantized.dequantized` for
    everyone else, written in front of their first readers. Each comes with an abs-max of its own, `t@scale` and
    `t@output_scale`: the operators write to that variable too, and with a common one Paddle Lite's passes, which
    remove the first operator together with what it writes, no longer find the second (paddlelite 2.13rc0).
    """

    def __init__(self, builder: ProgramBuilder, quantization: Quantization) -> None:
        super().__init__(builder, quantization)
        self._integers: dict[str, str] = {}  # tensor -> variable with its integers
        self._scales: dict[str, str] = {}  # rounded variable -> variable with its abs-max

    def round(self, value: ir.Value) -> None:
        """Nothing yet: the operators follow where the value is read."""

    def read(self, index: int) -> str:
        value = self.required(index)
        if value.const_value is None and self._is_rounded(str(value.name), self.node.name):
            return self._dequantized(value)
        return super().read(index)

    def fetched(self, value: ir.Value) -> str:
        return self._dequantized(value) if self._is_rounded(str(value.name), None) else super().fetched(value)

    def product(self, kind: str, parameters: tuple[str, str, str], target: str, **attributes: Attribute) -> None:
        """With int8 weights: the product of integers, and the operator that gives it its scale."""
        value, weight = self.required(0), self.required(1)
        name = str(value.name)
        qparams = None if weight.const_value is None else self._quantization.weight(str(weight.name))
        if qparams is None or not self._is_rounded(name, self.node.name):
            super().product(kind, parameters, target, **attributes)
            return
        if qparams.spec.axis is not None and self.rank(0) not in (2, 4):
            raise self.refuse(
                f"a product of rank {self.rank(0)} with a scale per channel has no operator in the older form",
                "write onnx_format: true, or weight_quantize_type: abs_max",
            )
        first, second, output = parameters
        integers = self.temporary("integers")
        quantized = self._quantized(value)
        inputs = {first: [quantized], second: [self._integers_of(weight, qparams)]}
        self.op(kind, inputs, {output: [integers]}, quantization_type="qat_with_weight", **attributes)
        self._dequantize_product(integers, self._scales[quantized], str(weight.name), qparams, target)

    def _dequantize_product(self, integers: str, scale: str, weight: str, qparams: QParams, target: str) -> None:
        if qparams.spec.axis is None:
            # DequantOpFuser of Paddle Lite takes the weights' abs-max back out of it: 127^2 / max_range.
            limit = float(np.float32(_QMAX * _QMAX) / absmax(qparams))
            inputs: Names = {"X": [integers], "Scale": [scale]}
            self.builder.add_operator("fake_dequantize_max_abs", inputs, {"Out": [target]}, {"max_range": limit})
            return
        channels = self.builder.unique_name(f"{weight}@channel_scale")
        self.builder.add_parameter(channels, absmax(qparams).reshape(-1))
        self.builder.add_operator(
            "fake_channel_wise_dequantize_max_abs",
            {"X": [integers], "Scales": [channels, scale]},
            {"Out": [target]},
            {"quant_bits": [8, 8], "quant_axis": qparams.spec.axis, "x_num_col_dims": 1},
        )

    def _integers_of(self, weight: ir.Value, qparams: QParams) -> str:
        """The integers of a weight as float32, a copy for each layer: Paddle Lite casts them to int8 in place."""
        assert weight.const_value is not None
        array = affine.quantize(np.asarray(weight.const_value.numpy()), qparams).astype(np.float32)
        return self.parameter(str(weight.name), array)

    def _constant_variable(self, value: ir.Value) -> str:
        """A constant that is no layer's weight: rounded, in float32, for this form has no integers for it.

        Its scale stands in an operator behind it, as that of a computed tensor: Paddle Lite takes it from there.
        """
        name = str(value.name)
        qparams = None if self._quantization.is_bias(name) else self._quantization.weight(name)
        if qparams is None or value.const_value is None or name in self._computed:
            return super()._constant_variable(value)
        array = affine.fake_quantize(np.asarray(value.const_value.numpy(), dtype=np.float32), qparams)
        self._computed[name] = self.builder.add_parameter(name, array)
        if self.node.op_type not in _LAYERS and qparams.spec.axis is None:
            target = self.builder.unique_name(f"{name}.quantized.dequantized")
            self._computed[name] = self._with_scale(
                self._computed[name], array.shape, qparams, _ROUND_TRIP, target, f"{name}@scale"
            )
        return self._computed[name]

    def _is_rounded(self, tensor: str, reader: str | None) -> bool:
        """Whether a computed tensor is placed, and this reader (None: the program's output) gets it rounded."""
        placed = tensor in self._computed and self._quantization.activation(tensor) is not None
        return placed and self._quantization.reads_rounded(tensor, reader)

    def _quantized(self, value: ir.Value) -> str:
        kind = "fake_quantize_moving_average_abs_max"
        return self._behind(value, self._integers, kind, f"{value.name}.quantized", f"{value.name}@scale")

    def _dequantized(self, value: ir.Value) -> str:
        name = str(value.name)
        target = name if self._computed[name] != name else f"{name}.quantized.dequantized"
        return self._behind(value, self._rounded, _ROUND_TRIP, target, f"{name}@output_scale")

    def _behind(self, value: ir.Value, known: dict[str, str], kind: str, wanted: str, wanted_scale: str) -> str:
        """The variable that an operator of this kind makes of a tensor; the operator is written once."""
        name = str(value.name)
        qparams = self._quantization.activation(name)
        if name not in known and qparams is not None:
            target = wanted if wanted == name else self.builder.unique_name(wanted)
            known[name] = self._with_scale(self._computed[name], dims_of(value), qparams, kind, target, wanted_scale)
        return known[name]

    def _with_scale(
        self, source: str, sizes: Sequence[int], qparams: QParams, kind: str, target: str, wanted_scale: str
    ) -> str:
        """`target`, which an operator of this kind makes of `source` with an abs-max of its own."""
        self.builder.declare(target, np.dtype(np.float32), sizes)
        scale = self.builder.add_parameter(self.builder.unique_name(wanted_scale), absmax(qparams).reshape(1))
        inputs: Names = {"X": [source], "InScale": [scale]}
        self.builder.add_operator(kind, inputs, {"Out": [target], "OutScale": [scale]}, _ROUNDING)
        self._scales[target] = scale
        return target
