"""Paddle's quantizers as ONNX's QuantizeLinear and DequantizeLinear.

quantize_linear and dequantize_linear (PaddleSlim's onnx_format): Scale is the abs-max: step = Scale / 127. The rounding
is half to even (round_type 0), the range [-128, 127], and the zero point always 0: all as in ONNX with int8.

The older form has fake_quantize_* in front of layers, which compute with integers as float32, and a fake_*dequantize_*
behind them, which multiplies by both steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.numerics.qparams import scale_from_paddle
from fullquant.readers.paddle_ops.context import OpContext

# Below this abs-max Paddle adds it before it divides, so that an all-zero tensor quantizes to zero.
_SMALLEST_ABSMAX = 1e-6


def _check_grid(c: OpContext) -> None:
    grid = (
        c.integer("bit_length", 8),
        c.integer("qmin", -128),
        c.integer("qmax", 127),
        c.integer("round_type", 0),
    )
    if grid != (8, -128, 127, 0):
        raise c.unsupported(
            f"bit_length {grid[0]}, range [{grid[1]}, {grid[2]}] and round_type {grid[3]} are not read, "
            "only 8 bits, [-128, 127] and round_type 0 are",
            "quantize the float model again with fullquant",
        )
    zero_point = c.constant("ZeroPoint")
    if zero_point is not None and np.any(zero_point != 0):
        raise c.unsupported("the zero point is not 0", "quantize the float model again with a symmetric method")


def _scale(c: OpContext, floor: float) -> tuple[ir.Value, dict[str, int], npt.NDArray[np.float32]]:
    """The step as an initializer, the axis attribute if there is one step per channel, and the abs-max."""
    absmax = np.asarray(c.required_constant("Scale"), dtype=np.float32).ravel()
    absmax = np.where(absmax <= floor, absmax + np.float32(floor), absmax).astype(np.float32)
    axis = c.integer("quant_axis", -1)
    step = scale_from_paddle(absmax)
    if absmax.size == 1 and axis < 0:
        return c.tensor(step.reshape(())), {}, absmax
    return c.tensor(step), {"axis": c.axis(axis, c.rank(c.input("X")))}, absmax


def quantize(c: OpContext) -> ir.Value:
    """int8(round(x / step)), clipped to [-128, 127]. An observer without effect (only_observer) passes x on."""
    if c.flag("only_observer"):
        return c.input("X")
    _check_grid(c)
    step, axis, absmax = _scale(c, _SMALLEST_ABSMAX)
    zeros = np.zeros(absmax.shape if axis else (), dtype=np.int8)
    return c.node("QuantizeLinear", c.input("X"), step, c.tensor(zeros), **axis)


def dequantize(c: OpContext) -> ir.Value:
    """step * q. Weights that lie as float integers in old files become int8."""
    if c.flag("only_observer"):
        return c.input("X")
    _check_grid(c)
    stored = c.constant("X")
    x = c.input("X")
    if stored is not None and stored.dtype != np.int8:
        x = c.tensor(_as_int8(c, stored))
    step, axis, absmax = _scale(c, 0.0)
    zeros = np.zeros(absmax.shape if axis else (), dtype=np.int8)
    return c.node("DequantizeLinear", x, step, c.tensor(zeros), **axis)


def fake_quantize(c: OpContext) -> ir.Value:
    """The integers of a tensor, as float32: what fake_quantize_moving_average_abs_max gives a layer."""
    return c.node("Cast", _fake_integers(c)[0], to=int(ir.DataType.FLOAT))


def fake_quantize_dequantize(c: OpContext) -> ir.Value:
    """A tensor rounded to its grid: fake_quantize_dequantize_moving_average_abs_max."""
    integers, step, zero = _fake_integers(c)
    return c.node("DequantizeLinear", integers, step, zero)


def _fake_integers(c: OpContext) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(int8 values, step, zero point) of an activation."""
    if not c.flag("is_test"):
        raise c.unsupported("is_test is false, so that the scale follows the data", "export the model for inference")
    grid = (c.integer("bit_length", 8), c.integer("round_type", 1))
    if grid != (8, 0):
        raise c.unsupported(
            f"bit_length {grid[0]} and round_type {grid[1]} are not read, only 8 bits and half to even (0) are",
            "run the file in Paddle Inference (engine paddle), or quantize the float model again with fullquant",
        )
    absmax = np.asarray(c.required_constant("InScale"), dtype=np.float32).ravel()
    absmax = np.where(absmax <= _SMALLEST_ABSMAX, absmax + np.float32(_SMALLEST_ABSMAX), absmax)
    step, zero = c.tensor(scale_from_paddle(absmax[0]).reshape(())), c.tensor(np.zeros((), dtype=np.int8))
    return c.node("QuantizeLinear", c.input("X"), step, zero), step, zero


def fake_dequantize(c: OpContext) -> ir.Value:
    """X * Scale / max_range: of an int8 constant, or of the product of integers and a weight with one scale."""
    scale = np.asarray(c.required_constant("Scale"), dtype=np.float32).reshape(())
    step = scale / np.float32(c.number("max_range", 1.0))
    integers = _int8_behind_cast(c)
    if integers is not None:
        return c.node("DequantizeLinear", integers, c.tensor(step), c.tensor(np.zeros((), dtype=np.int8)))
    return c.node("Mul", c.input("X"), c.tensor(step))


def fake_channel_wise_dequantize(c: OpContext) -> ir.Value:
    """X * s_w[c] * s_x / 127^2: the product of integers and a weight with a scale per output channel, axis 1 of X.

    With s_w alone: an int8 constant, with a scale per index of quant_axis.
    """
    scales, bits = c.constants("Scales"), c.integers("quant_bits")
    integers = _int8_behind_cast(c)
    if len(scales) == 1 and bits == [8] and integers is not None:
        step = scale_from_paddle(np.asarray(scales[0], dtype=np.float32).ravel())
        axis = c.axis(c.integer("quant_axis", 0), c.rank(integers))
        return c.node("DequantizeLinear", integers, c.tensor(step), c.tensor(np.zeros(step.shape, np.int8)), axis=axis)
    if len(scales) != 2 or bits != [8, 8] or c.integer("x_num_col_dims", 1) != 1:
        raise c.unsupported(
            f"{len(scales)} scales and quant_bits {bits}: only one scale of the weights and one of the activation, "
            "with 8 bits each, are read",
            "quantize the float model again with fullquant",
        )
    channels, activation = (np.asarray(scale, dtype=np.float32).ravel() for scale in scales)
    rank = c.rank(c.input("X"))
    factor = (channels * activation[0] / np.float32(127 * 127)).reshape(-1, *[1] * (rank - 2))
    return c.node("Mul", c.input("X"), c.tensor(factor))


def _int8_behind_cast(c: OpContext) -> ir.Value | None:
    """The int8 constant that X is the cast of, None where it is something else."""
    producer = c.input("X").producer()
    source = None if producer is None or producer.op_type != "Cast" else producer.inputs[0]
    constant = source is not None and source.const_value is not None and source.dtype == ir.DataType.INT8
    return source if constant else None


def _as_int8(c: OpContext, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.int8]:
    numbers = np.asarray(stored, dtype=np.float32)
    whole = np.rint(numbers)
    if np.any(whole != numbers) or np.any(np.abs(numbers) > 128):
        raise c.malformed("a quantized weight holds numbers that are no 8-bit integers")
    return whole.astype(np.int8)
