"""Equalisation keeps the function and evens out the ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.graph.edit import constant_value
from fullquant.graph.verify import verify
from fullquant.passes.equalise import equalise
from tests.graph.toy_models import check, feeds, parse, run

BLOCK = (
    "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[6,8,1,1] w3) "
    "=> (float[N,6,6,6] y) {{ a = Conv(x, w1, b1)  r = {first}  "
    "c = Conv <group = 8, pads = [1,1,1,1]> (r, w2, b2)  s = {second}  y = Conv(s, w3) }}"
)


def block(first: str = "Relu(a)", second: str = "Relu(c)", **constants: object) -> ir.Model:
    """An inverted residual block whose channels differ in range by a factor of up to 1000."""
    rng = np.random.default_rng(5)
    uneven = 10.0 ** rng.uniform(-1.5, 1.5, size=(8, 1, 1, 1))
    weights = {"w1": rng.normal(size=(8, 4, 1, 1)) * uneven, "w2": rng.normal(size=(8, 1, 3, 3))}
    return parse(BLOCK.format(first=first, second=second), **{**weights, **constants})  # type: ignore[arg-type]


def ranges(model: ir.Model, name: str, axis: int) -> np.ndarray:
    array = constant_value(model.graph.initializers[name])
    assert array is not None
    return np.abs(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)).max(axis=1)


def test_the_function_stays_and_pairs_have_equal_ranges() -> None:
    model = block()
    before = ranges(model, "w1", 0)
    assert check(equalise, model, tolerance=1e-4) == 2
    np.testing.assert_allclose(ranges(model, "w1", 0), ranges(model, "w2", 0), rtol=1e-2)
    np.testing.assert_allclose(ranges(model, "w2", 0), ranges(model, "w3", 1), rtol=1e-2)
    after = ranges(model, "w1", 0)
    assert after.max() / after.min() < before.max() / before.min() / 3


@pytest.mark.parametrize("activation", ["LeakyRelu <alpha = 0.2> (a)", "Identity(a)"])
def test_other_activations(activation: str) -> None:
    # An Identity is not in a canonical graph; it is refused, not followed.
    assert check(equalise, block(first=activation), tolerance=1e-4) == (2 if "Leaky" in activation else 1)


def test_a_clip_between_is_skipped() -> None:
    """ReLU6's bound would have to differ per channel."""
    model = block(first="Clip(a, zero, six)", zero=np.float32(0), six=np.float32(6))
    assert check(equalise, model, tolerance=1e-4) == 1


def test_a_second_reader_is_skipped() -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[4,4,1,1] w1, float[4,4,1,1] w2) => (float y) "
        "{ a = Conv(x, w1)  b = Conv(a, w2)  y = Add(a, b) }"
    )
    assert check(equalise, model) == 0


def test_grouped_convolutions() -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[8,2,3,3] w1, float[6,4,1,1] w2) => (float y) "
        "{ a = Conv <group = 2> (x, w1)  r = Relu(a)  y = Conv <group = 2> (r, w2) }"
    )
    assert check(equalise, model, tolerance=1e-4) == 1


def test_dead_channels_stay() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 4, 1, 1))
    weight[3] = 0
    model = block(w1=weight)
    inputs = feeds(model)
    before = [run(model, feed) for feed in inputs]
    equalise(model)
    verify(model)
    for feed, expected in zip(inputs, before, strict=True):
        np.testing.assert_allclose(run(model, feed), expected, rtol=1e-3, atol=1e-3)
    assert np.all(np.isfinite(ranges(model, "w1", 0)))
