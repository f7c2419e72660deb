"""Multiplications by and additions of constants per channel disappear into the layers beside them."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.passes.fold_affine import fold_affine


def fold_scale_shift(model: ir.Model) -> int:
    """Folds Add, Sub, Mul and Div with a constant scalar or a constant per channel into Conv and Gemm.

    This covers biases added behind a layer, input normalization in front of an unpadded convolution, and Paddle's
    dropout in downgrade_in_infer mode, y = (1 - p) x, which goes through pooling and flattening into the classifier.
    """
    return fold_affine(model, "Add", "Sub", "Mul", "Div")
