"""Rows of zeros beside a sequence without `pad`: the same integers, in Paddle and in Paddle Lite's converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.sessions import open_session
from fullquant.writers.paddle_rows import rows_of_zeros
from fullquant.writers.program_desc import build_paddle, write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams, simulate

LENGTH, WIDTH = 4, 6


def sequence(axis: int = 1, rows: tuple[int, int] = (1, 0), *, fill: float = 0.0, batch: int = 0) -> ir.Model:
    """Tokens, padded, with positions added."""
    rng = np.random.default_rng(3)
    pads = [batch, 0, 0, 0, 0, 0]
    pads[axis], pads[axis + 3] = rows
    sizes = [1, LENGTH, WIDTH]
    sizes[axis] += sum(rows)
    constants = {
        "w": rng.normal(0, 1, (WIDTH, WIDTH)).astype(np.float32), "pads": np.array(pads), "fill": np.float32(fill),
        "c": rng.normal(0, 1, sizes).astype(np.float32),
    }  # fmt: skip
    nodes = [
        ("MatMul", ["x", "w"], ["m"], {}), ("Pad", ["m", "pads", "fill"], ["p"], {}), ("Add", ["p", "c"], ["y"], {}),
    ]  # fmt: skip
    model = graphs.graph(nodes, constants, input_shape=("N", LENGTH, WIDTH))
    infer_shapes(model)
    return model


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


X = np.random.default_rng(1).standard_normal((3, LENGTH, WIDTH)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(axis=st.sampled_from([1, 2]), rows=st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any))
def test_the_same_integers(axis: int, rows: tuple[int, int]) -> None:
    model = sequence(axis, rows)
    placement = place(model, "paddle_lite", PlacementOptions())
    qparams = minmax_qparams(model, placement, X)
    text = str(ir.to_proto(model))
    form, decisions = rows_of_zeros(model, placement)
    assert decisions is not None
    assert kinds(form) == ["MatMul", *["Slice", "Sub"] * sum(map(bool, rows)), "Concat", "Add"]
    assert {d.tensor for d in decisions} >= {str(v.name) for node in form.graph for v in node.outputs}
    before, after = simulate(model, placement, qparams, X), simulate(form, decisions, qparams, X)
    for name in ("p", "y@rounded"):
        np.testing.assert_array_equal(after[name], before[name])
    assert str(ir.to_proto(model)) == text  # what was given is as it was


@pytest.mark.parametrize(
    "changed",
    [{"fill": 1.0}, {"batch": 1}, {"rows": (LENGTH + 1, 0)}, {"rows": (0, 0)}],
    ids=["another value", "batch", "more rows than there are", "nothing"],
)
def test_what_cannot_be_written_so_stays(changed: dict) -> None:
    form, placement = rows_of_zeros(sequence(**changed), None)
    assert kinds(form) == ["MatMul", "Pad", "Add"]
    assert placement is None


def test_a_padding_that_stays_float_stays() -> None:
    model = sequence()
    placement = place(model, "paddle_lite", PlacementOptions(skip_patterns=("Pad",)))
    assert rows_of_zeros(model, placement) == (model, placement)


def test_the_files_compute_the_simulation(tmp_path: Path) -> None:
    pytest.importorskip("paddle", reason="Paddle Inference is not installed")
    model = sequence(rows=(1, 2))
    placement = place(model, "paddle_lite", PlacementOptions())
    qparams = minmax_qparams(model, placement, X)
    program = build_paddle(model, placement, qparams)
    assert "pad" not in {op.type for op in program.desc.blocks[0].ops}
    files = tmp_path / "m.pdmodel", tmp_path / "m.json"
    write_paddle(model, placement, qparams, files[0], tmp_path / "m.pdiparams", json_path=files[1])
    for file in files:
        actual = open_session(file, "paddle", optimize=False).run({"x": X})[0]
        np.testing.assert_allclose(actual, simulate(model, placement, qparams, X)["y@rounded"], atol=1e-6)
