"""Slices with steps and paddings as identity convolutions: the same integers, and which ones are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.sessions import open_session
from fullquant.writers.lite_form import lite_form
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams, simulate

END = 2**31 - 1


def shortcut(
    steps: tuple[int, int] = (2, 2), channels: tuple[int, int] = (2, 3),
    border: tuple[int, int, int, int] = (0, 0, 0, 0), *, start: int = 0, fill: float = 0.0, batch: int = 0,
    reads_slice: bool = False,
) -> ir.Model:  # fmt: skip
    """Conv, then a slice with steps and a padding, pooled: the shortcut of a CIFAR ResNet."""
    rng = np.random.default_rng(0)
    top, left, bottom, right = border
    constants = {
        "w": rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
        "starts": np.array([start, 0]), "ends": np.array([END, END]), "axes": np.array([2, 3]),
        "steps": np.array(steps),
        "pads": np.array([batch, channels[0], top, left, 0, channels[1], bottom, right]), "fill": np.float32(fill),
    }  # fmt: skip
    nodes = [
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], ["r"], {}),
        ("Slice", ["r", "starts", "ends", "axes", "steps"], ["s"], {}),
        ("Pad", ["s", "pads", "fill"], ["p"], {}),
        ("GlobalAveragePool", ["p"], ["y"], {}),
    ]
    if reads_slice:
        nodes[-1] = ("GlobalAveragePool", ["s"], ["other"], {})
        nodes += [("GlobalAveragePool", ["p"], ["q"], {}), ("Concat", ["q", "other"], ["y"], {"axis": 1})]
    return graphs.graph(nodes, constants, input_shape=("N", 3, 9, 8))


def placed(model: ir.Model, **options: object) -> tuple[Placement, dict, np.ndarray]:
    placement = place(model, "verisilicon_timvx", PlacementOptions(**options))  # type: ignore[arg-type]
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 8)).astype(np.float32)
    return placement, minmax_qparams(model, placement, x), x


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@settings(max_examples=20, deadline=None)
@given(
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    border=st.tuples(*[st.integers(0, 2)] * 4),
    reads_slice=st.booleans(),
)
def test_the_same_integers(steps, channels, border, reads_slice) -> None:
    model = shortcut(steps, channels, border, reads_slice=reads_slice)
    placement, qparams, x = placed(model)
    before = simulate(model, placement, qparams, x)
    text = str(ir.to_proto(model))
    form, decisions, scales = lite_form(model, placement, qparams)
    assert "Pad" not in kinds(form)
    assert ("Slice" in kinds(form)) == (steps == (1, 1))
    after = simulate(form, decisions, scales, x)
    for name in ("p", "y@rounded"):
        np.testing.assert_array_equal(after[name], before[name])
    assert str(ir.to_proto(model)) == text  # what was given is as it was


def test_a_slice_and_its_padding_are_one_convolution() -> None:
    model = shortcut()
    form, decisions, _ = lite_form(model, *placed(model)[:2])
    assert kinds(form) == ["Conv", "Relu", "Conv", "GlobalAveragePool"]
    weight = form.graph[2].inputs[1]
    assert weight is not None
    assert weight.shape == (9, 4, 1, 1)
    assert decisions[str(weight.name)].kind == "weight"


@pytest.mark.parametrize(
    "changed",
    [{"start": 1, "channels": (0, 0)}, {"fill": 1.0, "steps": (1, 1)}, {"batch": 1, "steps": (1, 1)}],
    ids=["starts inside", "another value", "batch"],
)
def test_what_no_identity_can_do_stays(changed: dict) -> None:
    model = shortcut(**changed)
    form, _, _ = lite_form(model, *placed(model)[:2])
    assert ("Slice" if "start" in changed else "Pad") in kinds(form)


def test_a_float_padding_stays() -> None:
    model = shortcut(reads_slice=True)
    placement, qparams, _ = placed(model, skip_patterns=("Pad",))
    form, _, _ = lite_form(model, placement, qparams)
    assert "Pad" in kinds(form)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_file_computes_the_simulation(tmp_path: Path, per_channel: bool) -> None:
    model = shortcut()
    placement, qparams, x = placed(model, per_channel=per_channel, reduce_range=True)
    write_paddle(*lite_form(model, placement, qparams), tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    actual = open_session(tmp_path, "onnxruntime", optimize=False).run({"x": x})[0]
    np.testing.assert_allclose(actual, simulate(model, placement, qparams, x)["y@rounded"], atol=1e-6)
