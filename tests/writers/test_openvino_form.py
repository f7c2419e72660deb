"""Files of the target openvino: OpenVINO computes the simulation, sums inside convolutions included."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.lint import lint_onnx
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement import tables
from fullquant.placement import target as targets
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.readers.quantized import split_quantizers
from fullquant.runtime.sessions import open_session
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from tests.writers.onednn_networks import BODIES, images, network
from tests.writers.paddle_oracle import minmax_qparams, simulate

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is the oracle (pip install openvino)"
)
# OpenVINO's Subtract is another one: up to three steps, and no classifier that was looked at has it between layers.
NETWORKS = sorted(set(BODIES) - {"difference"})
Made = tuple[ir.Model, Placement, Mapping[str, QParams]]


def made_of(name: str) -> Made:
    model = prepare(network(name))
    placement = place(model, "openvino", PlacementOptions(scale_grid="short"))
    return model, placement, minmax_qparams(model, placement, images())


def steps(made: Made) -> np.ndarray:
    """How many steps of the output's scale OpenVINO is away from the simulation, for each element."""
    model, placement, scales = made
    output = str(model.graph.outputs[0].name)
    (found,) = open_session(build_onnx(*made, runtime="openvino"), "openvino", threads=1).run({"x": images()})
    expected = simulate(model, placement, scales, images())[f"{output}@rounded"]
    return np.abs(found - expected) / float(scales[placement.scale_owner(output)].scale)


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_the_simulation(name: str) -> None:
    assert np.max(steps(made_of(name))) < 0.01


@needs_openvino
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("relu6", {"fused_sums": False}), ("projection", {"fused_sums": False}),
        ("own input", {"sums_of_any": False}), ("two activations", {"sums_of_any": False}),
    ],
)  # fmt: skip
def test_the_comparison_sees_what_the_table_leaves_out(
    name: str, change: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = replace(targets.find_target("openvino"), **change)  # type: ignore[arg-type]
    monkeypatch.setattr(targets, "TARGETS", {one.name: one for one in tables.TABLES} | {table.name: table})
    assert np.mean(steps(made_of(name)) > 0.5) > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_is_read_back_as_the_simulation(name: str, tmp_path: Path) -> None:
    made = made_of(name)
    write_onnx(*made, tmp_path / "m.onnx", runtime="openvino")
    read = split_quantizers(read_model(tmp_path / "m.onnx"))
    output = f"{made[0].graph.outputs[0].name}@rounded"
    found, expected = (
        simulate(m, p, q, images())[output] for m, p, q in ((read.model, read.placement, read.qparams), made)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inside = [d.tensor for d in read.placement if d.fused and d.tensor in made[1].decisions]
    assert inside == [d.tensor for d in made[1] if d.fused and d.tensor in read.placement.decisions]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lint_knows_what_the_kernels_compute(name: str) -> None:
    assert lint_onnx(build_onnx(*made_of(name), runtime="openvino")) == []


def _after(kind: str) -> Callable[[ir.Node], bool]:
    return lambda node: node.op_type == "QuantizeLinear" and _producer(node) == kind


def _producer(node: ir.Node) -> str:
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type


@pytest.mark.parametrize(("name", "kind"), [("relu6", "Add"), ("projection", "HardSwish")])
def test_the_lint_sees_a_sum_that_nobody_rounds(name: str, kind: str) -> None:
    """The rounding behind the sum is taken out: the readers get the float."""
    model = build_onnx(*made_of(name), runtime="openvino")
    (quantizer,) = filter(_after(kind), model.graph)
    (dequantizer,) = (use.node for use in quantizer.outputs[0].uses())
    for after in list(dequantizer.outputs[0].uses()):
        after.node.replace_input_with(after.idx, quantizer.inputs[0])
    model.graph.remove([dequantizer, quantizer], safe=True)
    assert "missing-scale" in {finding.rule for finding in lint_onnx(model)}
