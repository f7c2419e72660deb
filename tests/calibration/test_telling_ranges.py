"""Scales that look at what the readers of a tensor make of it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.calibration.calibrator import (
    observe_activations,
    observed_qparams,
    telling_ranges,
)
from fullquant.calibration.fisher import averaged_tensors, fisher_qparams
from fullquant.calibration.observers import EveryObserver
from fullquant.evaluation.accuracy import kl_divergence
from fullquant.numerics import affine
from fullquant.placement.place import place
from fullquant.runtime.executor import GraphModule
from tests.calibrating import min_max_qparams
from tests.graphs import graph, small_classifier

IMAGES = np.random.default_rng(0).normal(0, 1, (8, 3, 8, 8)).astype(np.float32)


def test_values_that_hard_swish_and_hard_sigmoid_cannot_tell_apart_cost_no_step() -> None:
    model = small_classifier()
    found = telling_ranges(model, place(model))
    assert set(found) == {"a1", "c4"}
    assert found["a1"] == (-3.0, math.inf)
    assert found["c4"] == pytest.approx((-3.0, 3.0))


def test_a_second_reader_that_can_tell_them_apart_keeps_the_range() -> None:
    nodes = [("Sigmoid", ["x"], ["s"], {}), ("HardSwish", ["s"], ["h"], {}), ("Add", ["s", "h"], ["y"], {})]
    model = graph(nodes, {})
    assert telling_ranges(model, place(model)) == {}


def test_hard_swish_behind_the_narrow_scale_is_as_exact_as_its_step() -> None:
    nodes = [("Mul", ["x", "ten"], ["m"], {}), ("HardSwish", ["m"], ["y"], {})]
    model = graph(nodes, {"ten": np.float32(10)})
    images = np.clip(IMAGES, -3, 0.2)  # from -30 to 2: most of the range tells nothing
    placement = place(model)
    qparams = min_max_qparams(GraphModule(model), model, placement, [images])
    assert float(qparams["m"].scale) == np.float32(3 / 127)
    x = images * 10
    swish = x * np.clip(x + 3, 0, 6) / 6
    rounded = affine.fake_quantize(x, qparams["m"])
    error = np.abs(rounded * np.clip(rounded + 3, 0, 6) / 6 - swish)
    assert error.max() <= 1.5 * float(qparams["m"].scale)


def _sparse_averages() -> tuple[ir.Model, np.ndarray]:
    """A tensor with a few large values and many small ones, which differ by channel and image, and its average."""
    nodes = [("Mul", ["x", "one"], ["m"], {}), ("GlobalAveragePool", ["m"], ["y"], {})]
    model = graph(nodes, {"one": np.float32(1)})
    images = 0.05 * IMAGES + np.random.default_rng(1).uniform(-0.4, 0.4, (8, 3, 1, 1)).astype(np.float32)
    images[0, :, 0, 0] = 120.0
    return model, images


def test_small_values_that_add_up_in_an_average_are_not_rounded_to_zero() -> None:
    model, images = _sparse_averages()
    placement = place(model)
    assert averaged_tensors(model, placement) == ["m"]
    module = GraphModule(model)
    observers = observe_activations(module, model, placement, [images], EveryObserver)
    best = fisher_qparams(module, model, placement, [images], observers, probabilities=False)["m"]
    for observer in observers.values():
        observer.choose("min_max")
    plain = observed_qparams(observers, placement)["m"]

    def divergence(qparams: object) -> float:
        rounded = affine.fake_quantize(images, qparams)  # type: ignore[arg-type]
        return float(kl_divergence(images.mean(axis=(2, 3)), rounded.mean(axis=(2, 3))).mean())

    assert float(best.scale) < float(plain.scale)
    assert divergence(best) < 0.5 * divergence(plain)


def test_a_tensor_with_another_reader_is_left_alone() -> None:
    model = small_classifier()
    assert averaged_tensors(model, place(model)) == ["hs"]
