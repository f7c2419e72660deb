"""Weights of targets that round them again: every channel holds 127."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.calibration.full_range import fill_weights
from fullquant.numerics import affine
from fullquant.numerics.qparams import symmetric
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.runtime.executor import GraphModule
from tests.graphs import small_classifier
from tests.writers.paddle_oracle import minmax_qparams

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def student(target: str, factor: float) -> GraphModule:
    """The scale of one weight is `factor` times that of its largest number."""
    model = prepare(small_classifier())
    placement = place(model, target)
    scales = minmax_qparams(model, placement, X)
    scales["w2"] = symmetric(scales["w2"].spec, scales["w2"].scale * np.float32(factor))
    return GraphModule(model, placement=placement, qparams=scales)


def largest(module: GraphModule, name: str) -> np.ndarray:
    params = module.current_qparams()[name]
    integers = affine.quantize(module.parameter(name).detach().numpy(), params)
    return np.abs(integers).reshape(len(integers), -1).max(axis=1)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 4.0))
def test_every_channel_holds_127(factor: float) -> None:
    module = student("paddle_inference", factor)
    before = module.current_qparams()["w2"].scale
    lowered = fill_weights(module)
    after = module.current_qparams()["w2"].scale
    assert (largest(module, "w2") == 127).all()
    assert np.all(after <= before * (1 + 1e-6))
    assert lowered == int(np.sum(after < before * (1 - 1e-6)))
    assert fill_weights(module) == 0


def test_only_where_the_runtime_rounds_again() -> None:
    module = student("paddle_lite", 1.5)
    assert fill_weights(module) == 0
    assert largest(module, "w2").max() < 127


def test_channels_of_zeros_keep_their_scale() -> None:
    module = student("paddle_inference", 1.5)
    module.parameter("w2").data[3] = 0
    before = module.current_qparams()["w2"].scale[3]
    fill_weights(module)
    np.testing.assert_allclose(module.current_qparams()["w2"].scale[3], before, rtol=1e-6)
