"""Layer normalization over many values, in parts: as exact as float32 can be, and one operator again when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.readers import read_model
from fullquant.readers.quantized import split_quantizers
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import open_session
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from fullquant.writers.program_desc import build_paddle, write_paddle
from fullquant.writers.wide_norms import split_wide_norms, with_split_norms
from tests.graphs import graph, run_onnxruntime
from tests.writers.qdq_models import quantized

PARTS = {"ReduceMean", "Sub", "Mul", "Sqrt", "Div"}


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def norm(inner: tuple[int, ...], *, gain: float = 1.0, bias: bool = False) -> ir.Model:
    """LayerNormalization over all axes but the first two."""
    constants = {"gain": np.full(inner, gain, np.float32)}
    if bias:
        constants["bias"] = np.ones(inner, np.float32)
    attributes = {"axis": 2, "epsilon": 1e-5}
    return graph(
        [("LayerNormalization", ["x", *constants], ["y"], attributes)], constants, input_shape=("N", 1, *inner)
    )


def network() -> ir.Model:
    """Group normalization of a map of 8192 values, as it is read from Paddle, with layers around it."""
    rng = np.random.default_rng(3)
    constants = {
        "w": rng.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32),
        "flat": np.asarray([0, 1, -1]), "map": np.asarray([0, 8, 32, 32]),
        "gain": np.ones(8192, np.float32),
        "v": rng.normal(0, 0.4, (5, 8, 1, 1)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"pads": [1, 1, 1, 1]}), ("Reshape", ["a", "flat"], ["b"], {}),
        ("LayerNormalization", ["b", "gain"], ["c"], {"axis": 2, "epsilon": 1e-3}),
        ("Reshape", ["c", "map"], ["d"], {}), ("Conv", ["d", "v"], ["y"], {}),
    ]  # fmt: skip
    return graph(nodes, constants, input_shape=("N", 3, 32, 32))


def written() -> tuple[ir.Model, Placement, dict[str, QParams], np.ndarray]:
    model = network()
    placement, qparams, feeds = quantized(model, "paddle_lite", scale_grid="short")
    return model, placement, qparams, np.asarray(feeds[0], np.float32)


def simulated(model: ir.Model, placement: Placement, qparams: dict[str, QParams], x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(GraphModule(model, placement=placement, qparams=qparams)(torch.from_numpy(x)))


def test_parts_are_as_exact_as_float32() -> None:
    """On few integers with a long tail, as a map's are; one operator is 10 times as far away, or more."""
    x = np.clip(np.rint(np.random.default_rng(0).standard_t(2, (2, 1, 256, 512)) * 2), -127, 127) * np.float32(1.125)
    x = x.astype(np.float32)
    exact = x - x.mean((2, 3), keepdims=True, dtype=np.float64)
    exact /= np.sqrt(np.mean(exact**2, axis=(2, 3), keepdims=True) + 1e-5)
    whole = norm((256, 512))
    parts = with_split_norms(whole)
    assert operators(whole) == ["LayerNormalization"]
    assert "LayerNormalization" not in operators(parts)
    errors = [float(np.abs(run_onnxruntime(m, x) - exact).max() / np.abs(exact).max()) for m in (parts, whole)]
    assert errors[0] < 1e-6
    assert errors[1] > 10 * errors[0], "ONNX Runtime now adds exactly: the parts are no longer needed"


@pytest.mark.parametrize(
    "model",
    [norm((4096,)), norm((8192,), gain=2.0), norm((8192,), bias=True), norm((8209,)), norm((2, 5, 821))],
    ids=["few", "gain", "bias", "prime", "no divisor near the root"],
)
def test_others_are_left_alone(model: ir.Model) -> None:
    assert with_split_norms(model) is model
    assert split_wide_norms(model.graph) == 0


def test_the_onnx_file_is_the_simulation_and_is_read_as_it_was(tmp_path: Path) -> None:
    model, placement, qparams, x = written()
    path = tmp_path / "model.onnx"
    write_onnx(model, placement, qparams, path)
    read = read_model(path)
    assert set(operators(read)) >= PARTS
    found = split_quantizers(read)
    assert operators(found.model) == operators(model)
    by_output = {str(v.name): n for n in found.model.graph for v in n.outputs}
    assert [v.name for v in by_output["c"].inputs][:1] == ["b"]
    assert by_output["c"].attributes["axis"].as_int() == 2
    assert by_output["c"].attributes["epsilon"].as_float() == pytest.approx(1e-3)
    expected = simulated(model, placement, qparams, x)
    np.testing.assert_array_equal(simulated(found.model, found.placement, dict(found.qparams), x), expected)
    for optimize in (False, True):
        (actual,) = open_session(path, "onnxruntime", optimize=optimize).run({"x": x})
        np.testing.assert_array_equal(actual, expected)
    assert path.stat().st_size < 20_000  # without a gain of 8192 numbers


@pytest.mark.parametrize("suffix", [".pdmodel", ".json"])
def test_the_paddle_file_is_read_as_it_was(suffix: str, tmp_path: Path) -> None:
    model, placement, qparams, x = written()
    path = tmp_path / f"m{suffix}"
    write_paddle(
        model, placement, qparams, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams", json_path=tmp_path / "m.json"
    )
    read = read_model(path)
    assert set(operators(read)) >= PARTS
    found = split_quantizers(read)
    # Paddle 3's form casts integer weights, and the casts stay behind, read by nobody.
    assert [op for op in operators(found.model) if op != "Cast"] == operators(model)
    expected = simulated(model, placement, qparams, x)
    np.testing.assert_array_equal(simulated(found.model, found.placement, dict(found.qparams), x), expected)


def test_the_paddle_file_is_the_simulation(tmp_path: Path) -> None:
    pytest.importorskip("paddle")
    model, placement, qparams, x = written()
    path = tmp_path / "m.pdmodel"
    write_paddle(model, placement, qparams, path, tmp_path / "m.pdiparams")
    (actual,) = open_session(path, "paddle", optimize=False).run({"x": x})
    np.testing.assert_array_equal(actual, simulated(model, placement, qparams, x))


def test_where_the_operator_stays() -> None:
    """In float files, which others read, and for runtimes that have kernels of their own for it."""
    model, placement, qparams, _ = written()
    built = build_onnx(model, placement, qparams, runtime="openvino")
    assert "LayerNormalization" in operators(built)
    ops = [op.type for op in build_paddle(model, None, {}).desc.blocks[0].ops]
    assert "layer_norm" in ops
    ops = [op.type for op in build_paddle(model, placement, qparams).desc.blocks[0].ops]
    assert "layer_norm" not in ops


def test_another_quotient_is_not_joined() -> None:
    """Parts with another square than that of the deviation stay as they are."""
    model, placement, qparams, _ = written()
    built = build_onnx(model, placement, qparams)
    square = next(node for node in built.graph if node.op_type == "Mul")
    rows = next(node for node in built.graph if node.op_type == "Sub").inputs[0]
    square.replace_input_with(1, rows)
    assert "LayerNormalization" not in operators(split_quantizers(built).model)
