"""Files are written in the lowest operator set that means the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from fullquant.errors import ExportError
from fullquant.writers.onnx_opset import finish
from tests.graph.toy_models import Array, feeds, parse, run


@pytest.mark.parametrize(
    ("body", "constants", "opset"),
    [
        ("y = Relu(x)", {}, 13),
        ("y = HardSwish(x)", {}, 14),
        ("y = AveragePool <kernel_shape = [2,2], dilations = [1,1]> (x)", {}, 13),
        ("y = AveragePool <kernel_shape = [2,2], ceil_mode = 1> (x)", {}, 19),
        ("y = AveragePool <kernel_shape = [2,2], dilations = [2,2]> (x)", {}, 19),
        ("y = Pad(x, p, v, a)", {"p": np.int64([1, 1]), "v": np.float32(0), "a": np.int64([2])}, 18),
        ("y = ReduceMean(x, a)", {"a": np.int64([1])}, 18),
        ("y = Gelu(x)", {}, 20),
    ],
)
def test_the_lowest_operator_set(body: str, constants: Mapping[str, Array], opset: int) -> None:
    model = parse(f"g (float[N,2,6,6] x) => (float y) {{ {body} }}", **constants)
    inputs = feeds(model)
    expected = [run(model, feed) for feed in inputs]
    finish(model)
    assert model.opset_imports[""] == opset
    for feed, result in zip(inputs, expected, strict=True):
        np.testing.assert_allclose(run(model, feed), result, rtol=1e-6)


def test_operators_outside_onnx_are_refused() -> None:
    model = parse("g (float[N,2] x) => (float y) { y = Relu(x) }")
    next(iter(model.graph)).domain = "com.example"
    with pytest.raises(ExportError, match=r"com\.example"):
        finish(model)
    model = parse("g (float[N,2] x) => (float y) { y = Relu(x) }")
    next(iter(model.graph)).op_type = "Rellu"
    with pytest.raises(ExportError, match="Rellu"):
        finish(model)
