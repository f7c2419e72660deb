"""What a quantization is: the integer grid (QuantSpec) and its place on the real line (QParams).

    real = scale * (q - zero_point),   q integer in [qmin, qmax]

`scale` is the step between two neighbouring values. Paddle's files hold the abs-max instead; the conversion is in
`scale_from_paddle` / `paddle_from_scale` and is used by readers and writers only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of one tensor.

    qmin, qmax: smallest and largest integer used. int8 weights: [-127, 127]; activations: [-128, 127], the range of
        Paddle's quantize_linear and of ONNX QuantizeLinear; `reduce_range` weights: [-64, 63]; affine uint8: [0, 255].
    symmetric: the zero point is 0 in the signed grid. A writer may store the grid as unsigned with zero point 128.
    axis: None for one scale per tensor, else the axis of the tensor that has a scale per index (per_channel).
    mantissas: what a scale may be times a power of two, ascending in [1, 2); empty for any scale. See `short_scale`.
    """

    qmin: int
    qmax: int
    symmetric: bool = True
    axis: int | None = None
    mantissas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mantissas and (
            self.mantissas[0] != 1.0 or list(self.mantissas) != sorted({m % 2 for m in self.mantissas})
        ):
            raise ValueError(f"mantissas {self.mantissas}: not ascending from 1 to below 2")
        if not self.qmin < self.qmax:
            raise ValueError(f"qmin {self.qmin} must be below qmax {self.qmax}")
        if self.symmetric and not self.qmin < 0 < self.qmax:
            raise ValueError(f"a symmetric grid contains 0 inside: [{self.qmin}, {self.qmax}]")

    @property
    def bits(self) -> int:
        """Bits needed to store the grid."""
        return int(self.qmax - self.qmin).bit_length()

    def nearest_scale(self, scale: npt.ArrayLike) -> FloatArray:
        """The scale that stands for `scale` on this grid: itself, or its `short_scale`; float32, the same shape."""
        array = np.asarray(scale, dtype=np.float32)
        return short_scale(array, self.mantissas) if self.mantissas else array


# Scales with which runtimes that multiply by float32(scale_in / scale_out), or by an inverse, send every half-way value
# to the same side as a division does: decision 0005, tests/numerics/test_short_scale.py.
ACTIVATION_MANTISSAS = (1.0, 1.125, 1.5)
WEIGHT_MANTISSAS = (1.0, 1.125, 1.375, 1.5, 1.875)
POWERS_OF_TWO = (1.0,)

# The share of its range that a scale may lose when it is shortened. One step or so at the end of an int8 grid is then
# clipped; and a scale that is short already stays what it is.
SHORTENING_SLACK = 0.01


def short_scale(scale: FloatArray, mantissas: tuple[float, ...]) -> FloatArray:
    """The smallest m * 2**e >= (1 - SHORTENING_SLACK) * scale with m one of `mantissas`; float32, the same shape.

    With short scales every product and every sum of a quantized layer is an integer of at most 24 bits times a power
    of two, so that float32 computes it exactly, in whatever order a runtime adds. Up, because a smaller scale clips:
    on EfficientNet-Lite0 4% less range costs more than 25% larger steps.
    """
    half, exponent = np.frexp(np.asarray(scale, dtype=np.float64))
    steps = np.asarray([*mantissas, 2.0])
    index = np.searchsorted(steps, 2 * half * (1 - SHORTENING_SLACK), side="left")
    return np.asarray(np.ldexp(steps[index], exponent - 1), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class QParams:
    """The grid with its scale and zero point.

    scale: float32, finite and > 0, shape () for per_tensor, (C,) for per_channel (C = length of spec.axis).
    zero_point: int64, the same shape; all zero where the grid is symmetric.
    """

    spec: QuantSpec
    scale: FloatArray
    zero_point: IntArray

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, dtype=np.float32)
        zero_point = np.asarray(self.zero_point, dtype=np.int64)
        if scale.shape != zero_point.shape:
            raise ValueError(f"scale {scale.shape} and zero_point {zero_point.shape} differ in shape")
        if scale.ndim != (0 if self.spec.axis is None else 1):
            raise ValueError(f"scale of shape {scale.shape} does not fit axis {self.spec.axis}")
        if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
            raise ValueError("every scale must be finite and > 0")
        if np.any(self.spec.nearest_scale(scale) != scale):
            raise ValueError(f"a scale is not one of {self.spec.mantissas} times a power of two")
        if self.spec.symmetric and np.any(zero_point != 0):
            raise ValueError("a symmetric grid has zero_point 0")
        if np.any(zero_point < self.spec.qmin) or np.any(zero_point > self.spec.qmax):
            raise ValueError(f"zero_point outside [{self.spec.qmin}, {self.spec.qmax}]")
        scale.setflags(write=False)
        zero_point.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)


def symmetric(spec: QuantSpec, scale: npt.ArrayLike) -> QParams:
    """QParams of a symmetric grid: zero points are 0, and the scale is the nearest that the grid has."""
    array = spec.nearest_scale(scale)
    return QParams(spec, array, np.zeros(array.shape, dtype=np.int64))


def scale_from_paddle(absmax: npt.ArrayLike, qmax: int = 127) -> FloatArray:
    """Step = abs-max / qmax. Paddle files hold the abs-max that the integer qmax stands for."""
    return np.asarray(np.asarray(absmax, dtype=np.float32) / np.float32(qmax), dtype=np.float32)


def paddle_from_scale(scale: npt.ArrayLike, qmax: int = 127) -> FloatArray:
    """Abs-max = step * qmax, the number that Paddle files call Scale."""
    return np.asarray(np.asarray(scale, dtype=np.float32) * np.float32(qmax), dtype=np.float32)
