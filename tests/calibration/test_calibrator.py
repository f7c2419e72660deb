"""From batches to scales, on a whole small classifier."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.calibration.calibrator import (
    bias_floors,
    calibrate_weights,
    observed_tensors,
    weight_scale,
)
from fullquant.calibration.correction import correct_statistics
from fullquant.errors import DataError, ModelError
from fullquant.numerics import affine
from fullquant.numerics.qparams import QuantSpec, symmetric
from fullquant.placement.accumulators import overflows
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from tests.calibrating import min_max_qparams
from tests.graphs import graph, small_classifier

IMAGES = np.random.default_rng(3).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)


def _calibrated(model: ir.Model):
    placement = place(model)
    module = GraphModule(model)
    qparams = min_max_qparams(module, model, placement, [IMAGES[:8], IMAGES[8:]])
    qparams.update(calibrate_weights(model, placement, qparams))
    return placement, module, qparams


def test_each_owner_gets_the_range_of_its_tensor() -> None:
    model = small_classifier()
    _, module, qparams = _calibrated(model)
    with torch.no_grad():
        _, kept = module(torch.from_numpy(IMAGES), keep=["r1", "logits"])
    for name, tensor in kept.items():
        assert float(qparams[name].scale) == pytest.approx(float(tensor.abs().max()) / 127, rel=1e-5)
    assert "c1" not in qparams


def test_a_concat_owner_covers_all_its_inputs() -> None:
    nodes = [
        ("Sigmoid", ["x"], ["a"], {}), ("Mul", ["x", "ten"], ["b"], {}), ("Concat", ["a", "b"], ["y"], {"axis": 1}),
    ]  # fmt: skip
    model = graph(nodes, {"ten": np.float32(10)})
    placement = place(model)
    assert set(observed_tensors(model, placement)) == {"x", "a", "b"}
    module = GraphModule(model)
    qparams = min_max_qparams(module, model, placement, [IMAGES])
    assert float(qparams[placement.scale_owner("a")].scale) == pytest.approx(10 * np.abs(IMAGES).max() / 127, rel=1e-5)


def test_the_simulated_classifier_is_close_to_float_and_on_the_grid() -> None:
    model = small_classifier()
    placement, module, qparams = _calibrated(model)
    student = GraphModule(model, placement=placement, qparams=qparams)
    with torch.no_grad():
        output, kept = student(torch.from_numpy(IMAGES), keep=["se", "r2"])
        reference = module(torch.from_numpy(IMAGES))
    assert float((output - reference).abs().max()) < 0.08
    for name, tensor in kept.items():
        steps = tensor.numpy() / qparams[name].scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_the_executor_equals_a_numpy_simulation_of_one_layer() -> None:
    w = np.random.default_rng(1).normal(0, 1, (4, 3)).astype(np.float32)
    nodes = [("Gemm", ["x", "w", "b"], ["c"], {"transB": 1}), ("Relu", ["c"], ["y"], {})]
    model = graph(nodes, {"w": w, "b": np.array([0.1, -0.2, 0.3, 0.0], np.float32)}, input_shape=("N", 3))
    placement = place(model)
    x = np.random.default_rng(2).normal(0, 1, (5, 3)).astype(np.float32)
    qparams = {"x": symmetric(QuantSpec(-128, 127), 0.02), "y": symmetric(QuantSpec(-128, 127), 0.03)}
    qparams.update(calibrate_weights(model, placement, qparams))
    student = GraphModule(model, placement=placement, qparams=qparams)
    got = student(torch.from_numpy(x)).detach().numpy()
    now = student.current_qparams()
    xq, wq = affine.fake_quantize(x, now["x"]), affine.fake_quantize(w, now["w"])
    expected = affine.fake_quantize(np.maximum(xq @ wq.T + np.array([0.1, -0.2, 0.3, 0], np.float32), 0), now["y"])
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_weight_scale_has_no_better_neighbour_than_abs_max(axis: int | None) -> None:
    w = np.random.default_rng(0).standard_t(4, (12, 9)).astype(np.float32)
    spec = QuantSpec(-127, 127, axis=axis)
    best = symmetric(spec, weight_scale(w, spec))
    peak = np.abs(w).max() if axis is None else np.abs(w).max(axis=1 - axis)
    plain = symmetric(spec, peak / 127)
    assert best.scale.shape == plain.scale.shape
    error = [float(((affine.fake_quantize(w, q) - w) ** 2).sum()) for q in (best, plain)]
    assert error[0] <= error[1] * (1 + 1e-6)


def test_the_bias_of_a_dead_channel_stays_inside_int32() -> None:
    w = np.ones((2, 3, 1, 1), np.float32)
    w[0] = 1e-12
    constants = {"w": w, "b": np.array([30.0, 1.0], np.float32)}
    model = graph([("Conv", ["x", "w", "b"], ["y"], {})], constants)
    placement, _, qparams = _calibrated(model)
    steps = constants["b"] / (float(qparams["x"].scale) * qparams["w"].scale)
    assert np.abs(steps).max() <= 2**30 * 1.001
    assert set(bias_floors(model, placement, qparams)) == {"w"}


@pytest.mark.parametrize("order", [("m", "b"), ("b", "m")])
def test_the_bias_behind_a_matmul_stays_inside_int32_as_well(order: tuple[str, str]) -> None:
    w = np.ones((8, 2), np.float32)
    w[:, 0] = 1e-12
    constants = {"w": w, "b": np.array([30.0, 1.0], np.float32)}
    model = graph([("MatMul", ["x", "w"], ["m"], {}), ("Add", list(order), ["y"], {})], constants)
    placement, _, qparams = _calibrated(model)
    steps = constants["b"] / (float(qparams["x"].scale) * qparams["w"].scale)
    assert np.abs(steps).max() <= 2**30 * 1.001
    assert overflows(model, placement, qparams) == []
    tiny = {**qparams, "w": symmetric(placement["w"].spec, qparams["w"].scale * np.float32(2**-12))}  # type: ignore[arg-type]
    (found,) = overflows(model, placement, tiny)
    assert (found.bias_name, found.channel) == ("b", 0)
    assert "beyond the 2147483647 of int32" in str(found)


@pytest.mark.parametrize("gain", [False, True])
def test_correction_gives_the_channels_their_statistics_back(gain: bool) -> None:
    model = small_classifier()
    placement = place(model)
    module = GraphModule(model)
    qparams = min_max_qparams(module, model, placement, [IMAGES])
    qparams.update(calibrate_weights(model, placement, qparams))
    qparams["w5"] = symmetric(placement["w5"].spec, qparams["w5"].scale * 10)  # type: ignore[arg-type]
    student = GraphModule(model, placement=placement, qparams=qparams)

    def distance() -> tuple[float, float]:
        with torch.no_grad():
            _, ours = student(torch.from_numpy(IMAGES), keep=["c5"])
            _, theirs = module(torch.from_numpy(IMAGES), keep=["c5"])
        mean = (ours["c5"] - theirs["c5"]).mean(dim=(0, 2, 3)).abs().max()
        spread = (ours["c5"].std(dim=(0, 2, 3)) / theirs["c5"].std(dim=(0, 2, 3)) - 1).abs().max()
        return float(mean), float(spread)

    def integers() -> np.ndarray:
        return affine.quantize(student.parameter("w5").detach().numpy(), student.current_qparams()["w5"])

    before, stored = distance(), integers()
    assert correct_statistics(module, student, model, placement, IMAGES, gain=gain) == 6
    after = distance()
    assert after[0] < 0.2 * before[0]
    assert after[1] < 0.1 * before[1] or not gain
    np.testing.assert_array_equal(integers(), stored)


def test_no_images_and_no_scales_are_errors() -> None:
    model = small_classifier()
    placement = place(model)
    with pytest.raises(DataError, match="no images"):
        min_max_qparams(GraphModule(model), model, placement, [])
    with pytest.raises(ModelError, match="no scale"):
        GraphModule(model, placement=placement, qparams={})


def test_short_scales_are_corrected_in_a_second_pass() -> None:
    """A gain moves a short scale to another one: without a second look at the means the channels would be off."""
    model = small_classifier()
    placement = place(model, options=PlacementOptions(scale_grid="short"))
    teacher = GraphModule(model)
    qparams = min_max_qparams(teacher, model, placement, [IMAGES])
    qparams.update(calibrate_weights(model, placement, qparams))
    student = GraphModule(model, placement=placement, qparams=qparams)

    def error() -> float:
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            teacher(torch.from_numpy(IMAGES), tap=lambda name, t: seen.__setitem__(name, t))
            _, kept = student(torch.from_numpy(IMAGES), keep=["c1"])
        return float((kept["c1"].mean((0, 2, 3)) - seen["c1"].mean((0, 2, 3))).abs().max())

    before = error()
    correct_statistics(teacher, student, model, placement, IMAGES)
    # What is left is the rounding of the bias to its int32 grid.
    assert error() < before / 5
