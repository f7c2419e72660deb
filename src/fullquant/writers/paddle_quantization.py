"""What a placement means for a Paddle program: which variables are rounded, by which numbers, and for whom.

Paddle's files hold abs-max = step * (2**(bits-1) - 1) where we hold the step. Paddle's kernels compute

    quantize_linear:   q = clip(round_half_even((qmax / absmax) * x), qmin, qmax)
    dequantize_linear: x = q * absmax / qmax

in float32, so a rounding can differ from numerics.affine only where x / step is within float32 precision of a tie.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.numerics import affine
from fullquant.numerics.qparams import FloatArray, QParams, QuantSpec, paddle_from_scale, symmetric
from fullquant.placement.decision import Decision, Placement


class Quantization:
    """Answers about the tensors of one graph; without a placement everything stays float."""

    def __init__(self, placement: Placement | None, qparams: Mapping[str, QParams]) -> None:
        self._placement = placement
        self._qparams = qparams
        #: Whether the file is for oneDNN's int8 passes.
        self.onednn = placement is not None and placement.onednn

    def _decision(self, tensor: str) -> Decision | None:
        decision = None if self._placement is None else self._placement.get(tensor)
        return decision if decision is not None and decision.spec is not None else None

    def qparams(self, tensor: str) -> QParams:
        """Scale of a placed tensor, its own or the one it shares. Raises ExportError where it was never found."""
        assert self._placement is not None  # callers have a decision, so there is a placement
        owner = self._placement.scale_owner(tensor)
        if owner not in self._qparams:
            raise ExportError(
                f"tensor {tensor!r} is placed as int8 but {owner!r} has no scale; calibrate the model first"
            )
        return self._qparams[owner]

    def activation(self, tensor: str) -> QParams | None:
        """Scale with which quantize_linear / dequantize_linear are written after the tensor, or None.

        None too for a `fused` tensor: no kernel rounds it. Its scale goes into `threshold` only.
        """
        decision = self._decision(tensor)
        if decision is None or decision.fused or decision.kind != "activation":
            return None
        qparams = self.qparams(tensor)
        _check_activation(tensor, qparams.spec)
        return qparams

    def weight(self, tensor: str) -> QParams | None:
        """Scale of a constant that is stored as int8, or None where it is stored as it is."""
        decision = self._decision(tensor)
        if decision is None or decision.kind == "bias":
            return None
        qparams = self.qparams(tensor)
        _check_symmetric(tensor, qparams.spec)
        if qparams.spec.qmin < -128 or qparams.spec.qmax > 127:
            raise ExportError(f"weight {tensor!r} is on [{qparams.spec.qmin}, {qparams.spec.qmax}]; Paddle stores int8")
        return qparams

    def is_bias(self, tensor: str) -> bool:
        """Whether the constant is a bias on the int32 grid."""
        decision = self._decision(tensor)
        return decision is not None and decision.kind == "bias"

    def reads_rounded(self, tensor: str, node: str | None) -> bool:
        """Whether `node` (None: the graph's output) reads the rounded tensor rather than the float one."""
        decision = self._decision(tensor)
        if decision is None:
            return False
        return decision.consumers is None or (node is not None and node in decision.consumers)

    def is_kept_float(self, node: ir.Node) -> bool:
        """Whether the file must tell the runtime to compute the operator in float, between its integer kernels."""
        return self._placement is not None and str(node.name) in self._placement.kept_float

    def threshold(self, tensor: str) -> float | None:
        """abs-max of a tensor that everyone reads rounded, for the attribute `out_threshold` of its operator.

        Paddle Lite and TensorRT take the output scale from it where no quantize_linear follows: between a convolution
        and its bias, and on `fused` tensors; they divide by 127 for every bit length. None where the tensor is float,
        or float for some reader.
        """
        decision = self._decision(tensor)
        if decision is None or decision.kind != "activation" or decision.consumers is not None:
            return None
        return float(absmax(self.qparams(tensor)))

    def bias(self, tensor: str, values: FloatArray, activation: str, weight: str) -> FloatArray:
        """The bias as integer kernels see it: on the int32 grid of step scale_x * scale_w, in float32.

        values: shape (C,). The file holds float32; runtimes that compute in integers round it to this grid themselves.
        """
        decision = self._decision(tensor)
        if decision is None or decision.spec is None:
            return values
        scale_w = self.qparams(weight).scale
        scale = np.asarray(self.qparams(activation).scale * scale_w, dtype=np.float32)
        spec = QuantSpec(decision.spec.qmin, decision.spec.qmax, axis=None if scale.ndim == 0 else 0)
        return affine.fake_quantize(values, symmetric(spec, scale))


def absmax(qparams: QParams, bit_length: int = 8) -> FloatArray:
    """Paddle's Scale: step * (2**(bit_length-1) - 1), shape of the step.

    int8 constants keep bit_length 8, so 127, whatever part of the range they use ([-64, 63] with `reduce_range`): the
    readers divide by 127, which gives the step back.
    """
    return paddle_from_scale(qparams.scale, 2 ** (bit_length - 1) - 1)


def _check_symmetric(tensor: str, spec: QuantSpec) -> None:
    if not spec.symmetric:
        raise ExportError(
            f"tensor {tensor!r} has an affine grid; Paddle's int8 runtimes ignore zero points, use a symmetric target"
        )


def _check_activation(tensor: str, spec: QuantSpec) -> None:
    _check_symmetric(tensor, spec)
    half = 2 ** (spec.bits - 1)
    if (spec.qmin, spec.qmax) != (-half, half - 1) or spec.axis is not None:
        raise ExportError(
            f"activation {tensor!r} is on [{spec.qmin}, {spec.qmax}], axis {spec.axis}; Paddle's quantize_linear clips "
            f"to [{-half}, {half - 1}] with one scale; place it with a Paddle target"
        )
