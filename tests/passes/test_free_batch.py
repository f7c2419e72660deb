"""A fixed batch becomes N where the images stay apart; models that mix them keep it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.graph.edit import dims
from fullquant.graph.verify import verify
from fullquant.passes.constants import fold_constants
from fullquant.passes.free_batch import free_batch
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import Array, parse, run

TOKENS = "t = Reshape(x, to3)  z = Transpose <perm = [0,2,1]> (t)  m = MatMul(z, w)"


def model_of(body: str, batch: int | str = 2, **constants: object) -> ir.Model:
    arrays = {"to3": np.int64([batch if isinstance(batch, int) else 0, 3, 16]), "w": np.eye(3) * 2, **constants}
    used = {name: array for name, array in arrays.items() if name in body}
    model = parse(f"g (float[{batch},3,4,4] x) => (float[{batch},?] y) {{ {body} }}", **used)  # type: ignore[arg-type]
    infer_shapes(model)
    return model


def images(count: int) -> Array:
    return np.random.default_rng(0).normal(size=(count, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x)  y = Flatten(a)",
        f"{TOKENS}  y = Flatten(m)",
        f"{TOKENS}  e = Expand(m, sizes)  y = Flatten(e)",
        "r = ReduceMax <keepdims = 1> (x, axes)  e = Expand(r, short)  y = Flatten(e)",
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_image_is_computed_as_before(body: str, batch: int) -> None:
    model = model_of(body, batch, sizes=np.int64([batch, 16, 3]), axes=np.int64([2, 3]), short=np.int64([3, 2, 2]))
    feed = images(batch)
    before = run(model, feed)
    assert free_batch(model) == 1
    verify(model)
    assert dims(model.graph.inputs[0]) == ("N", 3, 4, 4)
    assert (dims(model.graph.outputs[0]) or ())[0] == "N"
    np.testing.assert_array_equal(run(model, feed), before)
    many = images(5)
    together = run(model, many)
    apart = [run(model, many[i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-5)
    assert free_batch(model) == 0


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(x, mixed)",
        "c = Concat <axis = 0> (x, token)  y = Flatten(c)",
        "z = Transpose <perm = [1,0,2,3]> (x)  y = Flatten(z)",
        "s = ReduceSum <keepdims = 1> (x, first)  y = Flatten(s)",
        "e = Expand(x, larger)  f = Flatten <axis = 2> (e)  y = Relu(f)",
    ],
)
def test_images_that_are_mixed(body: str) -> None:
    model = model_of(
        body,
        mixed=np.int64([6, 16]),
        token=np.zeros((1, 3, 4, 4), np.float32),
        first=np.int64([0]),
        larger=np.int64([3, 2, 3, 4, 4]),
    )
    feed = images(2)
    before = run(model, feed)
    assert free_batch(model) == 0
    assert dims(model.graph.inputs[0]) == (2, 3, 4, 4)
    np.testing.assert_array_equal(run(model, feed), before)


@pytest.mark.parametrize("name", ["batch", "?"])
def test_other_names_of_the_batch(name: str) -> None:
    model = model_of("a = Relu(x)  y = Flatten(a)", name)
    assert free_batch(model) == 1
    assert dims(model.graph.outputs[0]) == ("N", 48)
    assert free_batch(model) == 0


def test_a_name_that_is_taken() -> None:
    model = parse("g (float[1,3,N,N] x) => (float y) { y = Relu(x) }")
    assert free_batch(model) == 0


def test_shapes_of_the_fixed_batch_are_followed() -> None:
    """Shape -> Reshape of a fixed batch is a constant by the time."""
    model = model_of("s = Shape <end = 1> (x)  t = Concat <axis = 0> (s, rest)  y = Reshape(x, t)", rest=np.int64([-1]))
    assert fold_constants(model) == 2
    assert free_batch(model) == 1
    assert run(model, images(5)).shape == (5, 48)
