"""clip_bounds against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fullquant.graph.clip import clip_bounds
from tests.graph.toy_models import feeds, parse, run


@pytest.mark.parametrize(
    ("body", "constants", "bounds"),
    [
        ("y = Relu(x)", {}, (0.0, math.inf)),
        ("y = Clip(x, a, b)", {"a": np.float32(-0.5), "b": np.float32(0.25)}, (-0.5, 0.25)),
        ("y = Clip(x, , b)", {"b": np.float32(0.25)}, (-math.inf, 0.25)),
        ("y = Clip(x, a, b)", {"a": np.float32(0), "b": np.finfo(np.float32).max}, (0.0, math.inf)),
        ("y = Max(x, a)", {"a": np.float32([0.1])}, (0.1, math.inf)),
        ("y = Min(a, x)", {"a": np.float32(0.1)}, (-math.inf, 0.1)),
    ],
)
def test_bounds(body: str, constants: dict[str, object], bounds: tuple[float, float]) -> None:
    model = parse(f"g (float[N,8] x) => (float[N,8] y) {{ {body} }}", **constants)  # type: ignore[arg-type]
    found = clip_bounds(next(iter(model.graph)))
    assert found is not None
    assert found[0] is model.graph.inputs[0]
    assert found[1:] == pytest.approx(bounds)
    for feed in feeds(model):
        np.testing.assert_array_equal(
            run(model, feed), np.minimum(np.maximum(feed, np.float32(found[1])), np.float32(found[2]))
        )


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Tanh(x)", {}),
        ("y = Max(x, a)", {"a": np.zeros(8, np.float32)}),
        ("y = Max(x, a)", {"a": np.zeros((1, 1, 1), np.float32)}),
        ("s = ReduceMax<keepdims = 0>(x)  y = Clip(x, , s)", {}),
    ],
)
def test_not_a_clamp_by_numbers(body: str, constants: dict[str, object]) -> None:
    model = parse(f"g (float[N,8] x) => (float y) {{ {body} }}", **constants)  # type: ignore[arg-type]
    assert clip_bounds(model.graph.outputs[0].producer()) is None  # type: ignore[arg-type]
