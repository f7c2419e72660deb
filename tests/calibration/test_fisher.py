"""Scales by expected KL divergence: the estimate is that of the real divergence, and clipping counts as it should."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.calibration.calibrator import observe_activations
from fullquant.calibration.fisher import _costs, _gradients, fisher_qparams
from fullquant.calibration.observers import EveryObserver
from fullquant.evaluation.accuracy import kl_divergence
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime import kernels
from fullquant.runtime.executor import GraphModule
from tests.graphs import graph, small_classifier

INT8 = QuantSpec(-128, 127)


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)


def _linear(outlier: float) -> ir.Model:
    """x -> Conv 1x1 -> mean -> logits; one channel of the convolution is `outlier` times as large and not used."""
    rng = np.random.default_rng(1)
    w = rng.normal(0, 0.5, (6, 3, 1, 1)).astype(np.float32)
    w[5] *= outlier
    head = rng.normal(0, 1, (6, 4)).astype(np.float32)
    head[5] = 0.0
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("GlobalAveragePool", ["c"], ["p"], {}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "head"], ["y"], {}),
    ]
    return graph(nodes, {"w": w, "head": head})


def _found(model: ir.Model, *, probabilities: bool = False) -> tuple[dict[str, QParams], dict[str, QParams]]:
    """(by Fisher, by min-max)."""
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="free"))
    module, batches = GraphModule(model), [_images(32, k) for k in range(2)]
    observers = observe_activations(module, model, placement, batches, EveryObserver)
    fisher = fisher_qparams(module, model, placement, batches, observers, probabilities=probabilities)
    return fisher, {owner: o.qparams(placement[owner].spec or INT8) for owner, o in observers.items()}


def test_a_range_that_does_not_reach_the_output_is_not_kept() -> None:
    fisher, wide = _found(_linear(outlier=50.0))
    assert float(fisher["c"].scale) < 0.3 * float(wide["c"].scale)


def test_a_range_that_reaches_the_output_is_kept() -> None:
    fisher, wide = _found(_linear(outlier=1.0))
    assert float(fisher["c"].scale) > 0.4 * float(wide["c"].scale)


def test_the_estimate_is_the_divergence_that_rounding_causes() -> None:
    """Half the mean of (g . d)^2 over drawn classes, against the divergence measured with the tensor rounded."""
    model = _linear(outlier=1.0)
    module, images = GraphModule(model), _images(256, 7)
    grid = symmetric(INT8, 0.4)
    random = torch.Generator().manual_seed(0)
    estimate = 0.0
    for _ in range(8):
        x, g = _gradients(module, images, {"c"}, random, probabilities=False)["c"]
        estimate += _costs(x, g, [grid])[0] / (8 * len(images))

    def rounded(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        scale = float(grid.scale)
        return torch.clamp(torch.round(tensor / scale), -128, 127) * scale if name == "c" else None

    with torch.no_grad():
        batch = torch.from_numpy(images)
        measured = kl_divergence(module(batch).numpy(), module(batch, tap=rounded).numpy()).mean()
    assert estimate == pytest.approx(measured, rel=0.25)


def test_probabilities_at_the_output_are_understood() -> None:
    fisher, wide = _found(small_classifier(), probabilities=True)
    assert set(fisher) == set(wide)
    assert all(float(params.scale) > 0 for params in fisher.values())


def test_error_dots_equal_numpy() -> None:
    rng = np.random.default_rng(3)
    x, g = rng.normal(0, 2, (2, 3, 40_001)).astype(np.float32)
    scale = np.array([0.01, 0.05, 0.2], np.float32)
    low, high = np.full(3, -128, np.float32), np.array([127, 127, 20], np.float32)
    got = kernels.error_dots(x, g, scale, low, high)
    for k in range(3):
        error = np.clip(np.rint(x / scale[k]), low[k], high[k]) * scale[k] - x
        np.testing.assert_allclose(got[:, k], (error * g).sum(axis=1, dtype=np.float64), rtol=1e-3, atol=1e-2)
