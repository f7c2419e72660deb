"""A small network as `quantize` would leave it: float file, int8 files, report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.auto_compression.exporting import ONNX_NAME
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.placement.target import find_target
from fullquant.writers.onnx_qdq import write_float_onnx, write_onnx
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.qdq_oracle import calibrate


def feed(count: int = 16, seed: int = 1) -> np.ndarray:
    """Images of small_classifier."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def placed(
    target: str = "paddle_lite", *, reduce_range: bool = False, model: ir.Model | None = None
) -> tuple[ir.Model, Placement, dict[str, QParams]]:
    """small_classifier, or another network, on short scales."""
    model = model or graphs.small_classifier()
    placement = place(model, target, PlacementOptions(scale_grid="short", reduce_range=reduce_range))
    return model, placement, calibrate(model, placement, feed(4, 0))


def write_all(
    folder: Path, model: ir.Model, placement: Placement, qparams: dict[str, QParams], *, paddle: bool = True
) -> Path:
    """float/model.onnx, and in int8/ the files of the target. Returns int8/."""
    (folder / "float").mkdir(parents=True)
    write_float_onnx(model, folder / "float" / "model.onnx")
    saved = folder / "int8"
    saved.mkdir()
    target = find_target(placement.target)
    write_onnx(model, placement, qparams, saved / ONNX_NAME, runtime=target.onnx_layout)
    if paddle and target.writes_paddle:
        write_paddle(model, placement, qparams, saved / "inference.pdmodel", saved / "inference.pdiparams")
    return saved
