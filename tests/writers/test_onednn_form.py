"""Files of the target paddle_inference: Paddle Inference with oneDNN's int8 passes computes the simulation."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.lint import lint
from fullquant.numerics.qparams import QParams, symmetric
from fullquant.passes import prepare
from fullquant.placement import tables
from fullquant.placement import target as targets
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.readers.quantized import split_quantizers
from fullquant.runtime.sessions import open_session
from fullquant.writers.onednn_form import onednn_form
from fullquant.writers.program_desc import write_paddle
from tests.graphs import small_classifier
from tests.lint.editing import PaddleFile
from tests.writers.onednn_networks import BODIES, images, network
from tests.writers.paddle_oracle import minmax_qparams, simulate

needs_paddle = pytest.mark.skipif(
    importlib.util.find_spec("paddle") is None, reason="Paddle Inference is the oracle (pip install paddlepaddle)"
)
SHORT = PlacementOptions(scale_grid="short")
Written = tuple[ir.Model, Placement, Mapping[str, QParams]]


def placed(model: ir.Model, x: np.ndarray, target: str = "paddle_inference") -> Written:
    model = prepare(model)
    placement = place(model, target, SHORT)
    return model, placement, minmax_qparams(model, placement, x)


def written(folder: Path, made: Written, *, form: bool = True) -> Path:
    path = folder / "m.pdmodel"
    write_paddle(*(onednn_form(*made) if form else made), path, folder / "m.pdiparams")
    return path


def distance(path: Path, made: Written, x: np.ndarray, engine: str = "paddle_onednn") -> float:
    """Largest difference of the outputs from the simulation, as a share of the largest output."""
    (found,) = open_session(path, engine, threads=1).run({"x": x})
    expected = simulate(*made, x)[f"{made[0].graph.outputs[0].name}@rounded"]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@needs_paddle
@pytest.mark.parametrize("name", BODIES)
def test_onednn_computes_the_simulation(name: str, tmp_path: Path) -> None:
    x = images()
    made = placed(network(name), x)
    path = written(tmp_path, made)
    assert distance(path, made, x) < 1e-5
    assert distance(path, made, x, "paddle") < 1e-5


@needs_paddle
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_whole_network(seed: int, tmp_path: Path) -> None:
    """Squeeze-and-excitation, a sum with HardSwish, a softmax: its probabilities are rounded by nobody."""
    x = np.random.default_rng(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)
    made = placed(small_classifier(seed), x)
    assert made[1]["y"].spec is None
    assert distance(written(tmp_path, made), made, x) < 1e-5


@needs_paddle
def test_the_comparison_sees_a_product_that_is_no_convolution(tmp_path: Path) -> None:
    """Paddle's fc takes the scales of its weights from the wrong numbers."""
    x = images()
    made = placed(network("relu"), x)
    assert distance(written(tmp_path, made, form=False), made, x) > 0.01


@needs_paddle
@pytest.mark.parametrize("change", [{"clamps_by_clip": False}, {"fused_sums": False}, {"fused_functions": frozenset()}])
def test_the_comparison_sees_what_the_table_leaves_out(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of its facts the simulation is not what oneDNN computes."""
    table = replace(targets.find_target("paddle_inference"), **change)  # type: ignore[arg-type]
    known = {one.name: one for one in tables.TABLES} | {table.name: table}
    monkeypatch.setattr(targets, "TARGETS", known)
    x = images()
    made = placed(network("two kinds of readers" if "fused_functions" in change else "residual"), x)
    assert distance(written(tmp_path, made), made, x) > 1e-3


@needs_paddle
def test_the_comparison_sees_weights_that_are_rounded_again(tmp_path: Path) -> None:
    x = images()
    model, placement, scales = placed(network("relu"), x)
    coarse = {n: symmetric(q.spec, q.scale * 1.3) if n == "wb" else q for n, q in scales.items()}
    made = (model, placement, coarse)
    path = written(tmp_path, made)
    assert distance(path, made, x, "paddle") < 1e-5
    assert distance(path, made, x) > 1e-3


@pytest.mark.parametrize("name", ["relu", "residual", "projection", "functions"])
def test_the_file_is_read_back_as_the_simulation(name: str, tmp_path: Path) -> None:
    x = images()
    made = placed(network(name), x)
    read = split_quantizers(read_model(written(tmp_path, made)))
    (found,) = (
        array for tensor, array in simulate(read.model, read.placement, read.qparams, x).items() if "@" in tensor
    )
    (expected,) = (array for tensor, array in simulate(*made, x).items() if "@" in tensor)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inside = [d.tensor for d in read.placement if d.fused and d.tensor in made[1].decisions]
    assert inside == [d.tensor for d in made[1] if d.fused and d.tensor in read.placement.decisions]


def test_the_lint_lets_sums_pass_that_are_read_in_float(tmp_path: Path) -> None:
    path = written(tmp_path, placed(network("functions"), images()))
    assert lint(path) == []
    file = PaddleFile(path)
    for op in file.ops:
        kept = [attr for attr in op.attrs if attr.name != "skip_quant"]
        del op.attrs[:]
        op.attrs.extend(kept)
    file.save()
    assert {finding.rule for finding in lint(path)} == {"missing-scale"}


def test_other_targets_keep_their_form() -> None:
    made = placed(network("relu"), images(), "paddle_lite")
    assert onednn_form(*made) == made
