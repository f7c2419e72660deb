"""Which supposition explains a layer's elements: each computed here by other means, and one that nothing explains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fullquant.numerics import affine
from fullquant.numerics.qparams import IntArray, QParams
from fullquant.readers.quantized import QuantizedGraph
from fullquant.runtime.departure import Simulation
from fullquant.runtime.layer_evidence import layer_evidence, layer_input
from tests.graph.toy_models import parse
from tests.runtime.integer.models import Placed, placed

GRAPHS = {
    "conv": "g (float[N,6,9,9] x, float[8,6,3,3] w, float[8] b) => (float[N,C,H,W] y)"
    " { y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w, b) }",
    "groups": "g (float[N,6,9,9] x, float[6,1,3,3] w, float[6] b) => (float[N,C,H,W] y)"
    " { c = Conv <group = 6, dilations = [2,2]> (x, w, b) y = Relu(c) }",
}
CONVOLUTIONS = {"conv": {"padding": 1, "stride": 2}, "groups": {"groups": 6, "dilation": 2}}


@pytest.fixture(params=list(GRAPHS))
def case(request) -> tuple[str, Placed, Simulation]:
    one = placed(parse(GRAPHS[request.param], seed=1), images=_images())
    return request.param, one, _simulation(one)


def _simulation(one: Placed) -> Simulation:
    """places: that of the file's values, of which only the names are used here."""
    return Simulation(QuantizedGraph(one.model, one.placement, one.qparams, {"x": ("", ""), "y": ("", "")}))


def _scaled(params: QParams, factor: float) -> QParams:
    """A power of two keeps a short scale short."""
    return QParams(params.spec, np.float32(params.scale * factor), params.zero_point)


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (3, 6, 9, 9)).astype(np.float32)


def _computed(name: str, one: Placed, source: IntArray, *, again: bool = False) -> IntArray:
    """The layer by torch in float64. again: with weights rounded to max|w| / 127 of each channel once more."""
    w, grid_x, grid_y = one.qparams["w"], one.qparams["x"], one.qparams[one.placement.scale_owner("y")]
    weight = torch.from_numpy(affine.fake_quantize(one.model.graph.initializers["w"].const_value.numpy(), w)).double()
    if again:
        step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        weight = torch.round(weight / step) * step
    bias = torch.tensor(one.model.graph.initializers["b"].const_value.numpy()).double()
    x = torch.from_numpy(affine.dequantize(source, grid_x)).double()
    y = F.conv2d(x, weight, bias, **CONVOLUTIONS[name])
    return affine.quantize((F.relu(y) if name == "groups" else y).numpy(), grid_y)


def test_an_input_that_differed_already_explains_it(case):
    name, one, simulation = case
    expected = simulation.integers(one.images)
    moved = expected["x"] + np.random.default_rng(2).integers(-30, 31, expected["x"].shape)
    moved = np.clip(moved, -128, 127)
    found = layer_evidence(simulation.graph, "y", moved, _computed(name, one, moved), expected["y"])
    assert found is not None
    assert (found.cause, found.exact) == ("carried", 1.0)
    assert found.checked > 100
    assert layer_input(simulation.graph, "y") == "x"


def test_weights_rounded_again_explain_it(case):
    """What Paddle's oneDNN passes do; shown where the output's grid is fine enough to see it."""
    name, one, _ = case
    fine = {**one.qparams, "y": _scaled(one.qparams["y"], 1 / 64), "w": _scaled(one.qparams["w"], 2)}
    one = Placed(one.model, one.placement, fine, one.images)
    simulation = _simulation(one)
    expected = simulation.integers(one.images)
    actual = _computed(name, one, expected["x"], again=True)
    found = layer_evidence(simulation.graph, "y", expected["x"], actual, expected["y"])
    assert found is not None
    assert found.checked > 5
    assert (found.cause, found.requantized) == ("requantized", 1.0)
    assert found.exact == 0.0


def test_noise_is_explained_by_nothing(case):
    _, one, simulation = case
    expected = simulation.integers(one.images)
    noise = np.random.default_rng(3).choice([-40, 40], expected["y"].shape)
    found = layer_evidence(simulation.graph, "y", expected["x"], expected["y"] + noise, expected["y"])
    assert found is not None
    assert found.cause == "unexplained"
    assert max(found.exact, found.saturated, found.requantized, found.both) < 0.2


def test_elements_within_a_step_need_no_explanation(case):
    _, one, simulation = case
    expected = simulation.integers(one.images)
    assert layer_evidence(simulation.graph, "y", expected["x"], expected["y"] + 1, expected["y"]) is None
