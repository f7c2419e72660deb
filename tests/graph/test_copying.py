"""A copy shares numbers with its source, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.graph import edit
from fullquant.graph.copying import copied
from fullquant.graph.text import to_text
from tests.graphs import run_onnxruntime, small_classifier


def test_the_source_does_not_change_with_its_copy() -> None:
    model = small_classifier()
    before, x = to_text(model), np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = run_onnxruntime(model, x)
    copy = copied(model)
    assert to_text(copy) == before
    weight = next(iter(copy.graph.initializers.values()))
    old = str(weight.name)
    edit.set_initializer(weight, np.zeros_like(edit.constant_value(weight)))
    weight.name = "renamed"
    for node in copy.graph:
        node.attributes.clear()
        node.outputs[0].shape = ir.Shape([1])
    assert to_text(model) == before
    assert model.graph.initializers[old].const_value.name == old  # type: ignore[union-attr]
    np.testing.assert_array_equal(run_onnxruntime(model, x), expected)


def test_shared_numbers_cannot_be_written_into() -> None:
    copy = copied(small_classifier())
    weight = edit.constant_value(next(iter(copy.graph.initializers.values())))
    assert weight is not None
    with pytest.raises(ValueError, match="read-only"):
        weight[...] = 0
