"""The shortest way from images to scales, for tests of what comes after."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fullquant.calibration.calibrator import observe_activations, observed_qparams
from fullquant.calibration.observers import MinMaxObserver
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.runtime.executor import GraphModule


def min_max_qparams(
    module: GraphModule, model: ir.Model, placement: Placement, batches: Iterable[npt.NDArray[np.float32]]
) -> dict[str, QParams]:
    """QParams of each activation that owns a scale, from the extremes of the batches."""
    return observed_qparams(observe_activations(module, model, placement, batches, MinMaxObserver), placement)
