"""BatchNormalization disappears into the convolution or linear layer before or behind it."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.passes.fold_affine import fold_affine


def fold_batch_norm(model: ir.Model) -> int:
    """Folds every BatchNormalization that can be.

    Into the Conv or Gemm before it whenever that feeds nothing else, asymmetric padding or not: the normalization acts
    on the outputs. Into those behind it if none of them pads with zeros, which the normalization would move.
    """
    return fold_affine(model, "BatchNormalization")
