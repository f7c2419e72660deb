"""The asset models, placed and calibrated on random images with the statistics of photographs: enough for structure."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.observers import MinMaxObserver
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule

SHAPES = {
    "efficientnet_lite0_imagenet": (3, 224, 224),
    "mobilenetv3_large_cifar10": (3, 64, 64),
    "mobilenetv3_small_ocr_cls": (3, 48, 192),
    "resnet20_cifar10": (3, 32, 32),
}
#: Convolutions and matrix products of each.
LAYERS = {
    "efficientnet_lite0_imagenet": 50, "mobilenetv3_large_cifar10": 65, "mobilenetv3_small_ocr_cls": 54,
    "resnet20_cifar10": 20,
}  # fmt: skip


def images(shape: tuple[int, int, int], count: int = 4, seed: int = 0) -> np.ndarray:
    """float32 [count, *shape]: patches of 8x8 pixels with a little noise, within [-2, 2]."""
    channels, height, width = shape
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, channels, -(-height // 8), -(-width // 8)))
    smooth = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return np.clip(smooth + 0.2 * random.standard_normal(smooth.shape), -2, 2).astype(np.float32)


@cache
def float_model(folder: Path) -> ir.Model:
    """The canonical graph at the size that the model is used at."""
    return prepare(read_model(folder, input_shape={"x": (-1, *SHAPES[folder.name])}))


@cache
def quantized_model(
    folder: Path, target: str, reduce_range: bool = False
) -> tuple[ir.Model, Placement, dict[str, QParams]]:
    """Largest values, short scales."""
    model = float_model(folder)
    placement = place(model, target, PlacementOptions(scale_grid="short", reduce_range=reduce_range))
    batch = [images(SHAPES[folder.name])]
    observers = observe_activations(GraphModule(model), model, placement, batch, MinMaxObserver)
    activations = observed_qparams(observers, placement)
    return model, placement, activations | calibrate_weights(model, placement, activations)
