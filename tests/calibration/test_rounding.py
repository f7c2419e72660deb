"""Compensated rounding: on the grid, nearer to the float output than nearest rounding, and never unsafe."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from fullquant.calibration.calibrator import calibrate_weights
from fullquant.calibration.rounding import _inverse_factor, _layers, compensate_rounding
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime import kernels
from fullquant.runtime.executor import GraphModule
from tests.calibrating import min_max_qparams
from tests.graphs import graph, small_classifier


def _correlated(count: int, channels: int, size: int = 12, seed: int = 0) -> np.ndarray:
    """Images whose channels and neighbouring pixels depend on each other, as real ones do."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(0, 1, (2, channels))
    mixed = np.einsum("nchw,cd->ndhw", rng.normal(0, 1, (count, 2, size, size)), mixing)
    noise = rng.normal(0, 0.1, mixed.shape)
    smooth = F.avg_pool2d(torch.from_numpy(mixed + noise), 3, 1, 1)
    return smooth.float().numpy()


def _conv(channels: int, out: int, kernel: int, **attributes: Any) -> ir.Model:
    groups = attributes.get("group", 1)
    rng = np.random.default_rng(5)
    w = rng.normal(0, 0.3, (out, channels // groups, kernel, kernel)).astype(np.float32)
    b = rng.normal(0, 0.3, out).astype(np.float32)
    nodes = [("Conv", ["x", "w", "b"], ["y"], {"kernel_shape": [kernel, kernel], **attributes})]
    return graph(nodes, {"w": w, "b": b}, input_shape=("N", channels, 12, 12))


def _linear(transposed: int) -> ir.Model:
    w = np.random.default_rng(5).normal(0, 0.3, (7, 24) if transposed else (24, 7)).astype(np.float32)
    nodes = [
        ("GlobalAveragePool", ["x"], ["p"], {}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "w"], ["y"], {"transB": transposed}),
    ]
    return graph(nodes, {"w": w}, input_shape=("N", 24, 12, 12))


def _student(model: ir.Model, x: np.ndarray) -> tuple[GraphModule, GraphModule, Any]:
    placement = place(model, "paddle_lite", PlacementOptions())
    teacher = GraphModule(model)
    qparams = min_max_qparams(teacher, model, placement, [x])
    qparams |= calibrate_weights(model, placement, qparams)
    return teacher, GraphModule(model, placement=placement, qparams=qparams), placement


CASES = {
    "1x1": _conv(24, 10, 1),
    "3x3": _conv(8, 10, 3, pads=[1, 1, 1, 1]),
    "stride, uneven padding": _conv(8, 10, 3, pads=[0, 0, 1, 1], strides=[2, 2]),
    "dilation": _conv(8, 10, 3, dilations=[2, 2]),
    "groups": _conv(8, 12, 3, group=4, pads=[1, 1, 1, 1]),
    "depthwise": _conv(8, 8, 5, group=8, pads=[2, 2, 2, 2]),
    "linear": _linear(0),
    "linear, transposed": _linear(1),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_output_is_nearer_than_with_nearest_rounding(case: str) -> None:
    model = CASES[case]
    channels = int(model.graph.inputs[0].shape[1])  # type: ignore[index, arg-type]
    x = _correlated(64, channels)
    teacher, student, placement = _student(model, x)
    name = "w"
    fresh = torch.from_numpy(_correlated(64, channels, seed=1))

    def error() -> float:
        weight = student.quantizer(name)(student.parameter(name))  # type: ignore[misc]
        kept, teacher.weights[f"t_{name}"].data = teacher.weights[f"t_{name}"].data.clone(), weight.detach()
        with torch.no_grad():
            changed = teacher(fresh)
        teacher.weights[f"t_{name}"].data = kept
        with torch.no_grad():
            return float((changed - teacher(fresh)).square().mean())

    before = error()
    assert compensate_rounding(student, model, placement, [x]) == 1
    assert error() < 0.8 * before
    quantizer = student.quantizer(name)
    assert quantizer is not None
    weight = student.parameter(name).detach()
    assert torch.equal(quantizer(weight), weight)


def test_the_kernel_equals_the_recursion_in_numpy() -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(0, 1, (2, 3, 6)).astype(np.float32)
    inputs = rng.normal(0, 1, (2, 50, 6))
    factor = _inverse_factor(torch.from_numpy(np.einsum("gnk,gnl->gkl", inputs, inputs)))
    assert factor is not None
    scale = np.full((2, 3), 0.3, np.float32)
    want = w.astype(np.float64)
    for g in range(2):
        for r in range(3):
            for i in range(6):
                q = np.clip(np.rint(want[g, r, i] / 0.3), -4, 4) * 0.3
                slope = (want[g, r, i] - q) / factor[g, i, i]
                want[g, r, i + 1 :] -= slope * factor[g, i, i + 1 :]
                want[g, r, i] = q
    kernels.compensated_rounding(w, factor, scale, -4, 4)
    np.testing.assert_allclose(w, want, atol=1e-4)
    assert np.abs(w).max() <= 4 * 0.3 + 1e-6


def test_independent_inputs_are_rounded_to_nearest() -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(0, 1, (1, 4, 8)).astype(np.float32)
    factor = _inverse_factor(torch.eye(8)[None] * 5)
    assert factor is not None
    rounded = w.copy()
    kernels.compensated_rounding(rounded, factor, np.full((1, 4), 0.25, np.float32), -127, 127)
    np.testing.assert_array_equal(rounded, np.rint(w / 0.25) * 0.25)


def test_what_cannot_be_inverted_is_left_alone() -> None:
    assert _inverse_factor(torch.full((1, 3, 3), torch.nan)) is None
    assert _inverse_factor(torch.zeros(1, 3, 3)) is not None  # a channel that is always zero
    model = CASES["1x1"]
    x = np.zeros((4, 24, 12, 12), np.float32)
    _, student, placement = _student(model, x)
    assert compensate_rounding(student, model, placement, [x]) == 1
    assert bool(torch.isfinite(student.parameter("w")).all())


def test_weights_that_are_used_twice_or_stay_float_are_left_alone() -> None:
    model = small_classifier()
    placement = place(model, "paddle_lite", PlacementOptions(skip_patterns=("Conv_0",)))
    names = {layer.weight for layer in _layers(model, placement)}
    assert names == {"w2", "w3", "w4", "w5", "w6"}
