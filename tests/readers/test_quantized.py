"""A quantized file read back is the simulation that was written, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.errors import ModelError
from fullquant.graph.text import to_text
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.readers.quantized import QuantizedGraph, is_quantized, split_quantizers
from fullquant.readers.quantized.grids import tensor_name
from fullquant.runtime.executor import GraphModule
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from fullquant.writers.program_desc import write_paddle
from tests.graph.toy_models import feeds, parse, run
from tests.writers.qdq_models import GRAPHS, quantized, toy
from tests.writers.qdq_oracle import calibrate


def simulate(found: QuantizedGraph, feed: np.ndarray) -> np.ndarray:
    module = GraphModule(found.model, placement=found.placement, qparams=found.qparams)
    module.freeze()
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(feed)).numpy())


def grid_of(params: QParams) -> tuple[int, int, int | None]:
    """The ends of the grid in steps from zero, and its axis: what stays the same however the integers are stored."""
    shift = int(params.zero_point.reshape(-1)[0])
    return params.spec.qmin - shift, params.spec.qmax - shift, params.spec.axis


def readers(model: ir.Model, tensor: str) -> frozenset[str]:
    """The nodes that read a tensor."""
    return frozenset(str(n.name) for n in model.graph if tensor in [None if v is None else v.name for v in n.inputs])


def assert_same_decisions(
    found: QuantizedGraph, model: ir.Model, placement: Placement, qparams: dict[str, QParams]
) -> int:
    """Every decision of the file is the one that was written; returns how many tensors on a grid were compared."""
    compared = 0
    output = str(model.graph.outputs[0].name)
    for decision in found.placement:
        if decision.tensor.endswith((".min", ".max")):
            continue  # bounds of a Clip that was written on integers
        name = decision.tensor.removesuffix(".rounded")
        before = placement[name]
        chosen = before.consumers
        if chosen == readers(model, name) and name != output:
            chosen = None  # all there are
        assert (decision.kind, decision.consumers) == (before.kind, chosen), decision
        if decision.spec is None or decision.kind == "bias":
            assert (decision.spec is None) == (before.spec is None), decision
            continue
        if before.spec is None:
            assert decision.fused, decision  # quantize_op_types does not speak of ReLUs; the file fuses this one
            continue
        assert decision.fused == before.fused, decision
        now = found.qparams[found.placement.scale_owner(decision.tensor)]
        then = qparams[placement.scale_owner(name)]
        np.testing.assert_allclose(now.scale, then.scale, rtol=2e-7)
        assert now.spec.mantissas == () or np.array_equal(now.scale, then.scale)
        assert grid_of(now) == grid_of(then), decision
        if before.shares is not None:
            assert found.placement.scale_owner(decision.tensor) == placement.scale_owner(name), decision
        compared += 1
    return compared


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale_grid": "short"},
    {"scale_grid": "short", "reduce_range": True},
    {"scale_grid": "power_of_two", "per_channel": False},
    {"full": False},
    {"skip_patterns": ("conv_2", "gemm")},
]
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("paddle_lite", {}),
    ("paddle_lite", {"weight_type": "uint8"}),
    ("paddle_lite", {"activation_type": "int8"}),
    ("tensorrt", {"runtime": "tensorrt"}),
    ("onnxruntime", {}),
    ("onnxruntime", {"activation_type": "int8", "weight_type": "uint8"}),
    ("openvino", {"runtime": "openvino"}),
]
# Every option in the two usual forms, every form with two options.
CASES = [(t, form, o) for t, form in (FORMS[0], FORMS[4]) for o in OPTIONS]
CASES += [(t, form, o) for t, form in FORMS if (t, form) not in (FORMS[0], FORMS[4]) for o in (OPTIONS[0], OPTIONS[4])]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("target", "form", "options"), CASES, ids=str)
def test_an_onnx_file_read_back_is_the_simulation(
    name: str, target: str, form: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    model = toy(name)
    placement, qparams, inputs = quantized(model, target, **options)
    path = tmp_path / "model.onnx"
    write_onnx(model, placement, qparams, path, **form)
    read = read_model(path)
    found = split_quantizers(read)
    assert is_quantized(read)
    assert not is_quantized(found.model)
    assert found.placement.target == target
    assert assert_same_decisions(found, model, placement, qparams) > 5
    for feed in inputs:
        expected, actual = run(read, feed), simulate(found, feed)
        # With free scales a sum's last bit could decide a rounding; in these two networks it does not.
        exact = options.get("scale_grid") == "short" and "Softmax" not in GRAPHS[name]
        np.testing.assert_allclose(actual, expected, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
def test_written_again_it_is_the_same_file(name: str, target: str, tmp_path: Path) -> None:
    model = toy(name)
    placement, qparams, _ = quantized(model, target, scale_grid="short")
    built = build_onnx(model, placement, qparams)
    path = tmp_path / "model.onnx"
    write_onnx(model, placement, qparams, path)
    found = split_quantizers(read_model(path))
    again = build_onnx(found.model, found.placement, found.qparams)
    lines, expected = to_text(again).splitlines(), to_text(built).splitlines()
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("scale_grid", ["short", "free"])
def test_a_paddle_file_read_back_is_the_onnx_file(scale_grid: Any, reduce_range: bool, tmp_path: Path) -> None:
    model = toy("mobile")
    options = PlacementOptions(scale_grid=scale_grid, reduce_range=reduce_range)
    placement = place(model, "paddle_lite", options)
    qparams = calibrate(model, placement, feeds(model)[1])
    write_paddle(model, placement, qparams, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    read = read_model(tmp_path / "m.pdmodel")
    found = split_quantizers(read)
    assert assert_same_decisions(found, model, placement, qparams) > 5
    assert [n.op_type for n in found.model.graph] == [n.op_type for n in model.graph]
    for feed in feeds(model):
        np.testing.assert_allclose(simulate(found, feed), run(read, feed), rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["onnx", "pdmodel"])
@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
def test_the_text_line_classifier_read_back(ocr_model_dir: Path, tmp_path: Path, target: str, suffix: str) -> None:
    if suffix == "pdmodel" and target == "onnxruntime":
        pytest.skip("the Paddle format has no zero points")
    model = prepare(read_model(ocr_model_dir, input_shape={"x": (-1, 3, 48, 192)}))
    x = np.random.default_rng(3).standard_normal((4, 3, 48, 192)).astype(np.float32)
    placement = place(model, target, PlacementOptions(scale_grid="short"))
    qparams = calibrate(model, placement, x[:1])
    path = tmp_path / f"m.{suffix}"
    if suffix == "onnx":
        write_onnx(model, placement, qparams, path)
    else:
        write_paddle(model, placement, qparams, path, tmp_path / "m.pdiparams")
    read = read_model(path)
    found = split_quantizers(read)
    assert assert_same_decisions(found, model, placement, qparams) > 150
    np.testing.assert_allclose(simulate(found, x), run(read, x), rtol=0, atol=1e-6)


# --- what is refused, and what decides ---------------------------------------------------------------------------


def test_a_float_model_is_refused() -> None:
    with pytest.raises(ModelError, match="holds no quantizers"):
        split_quantizers(toy("mobile"))


QDQ = """g (float[N,4] x, float s, uint8 z, float[4,2] w) => (float[N,2] y) {
  q = QuantizeLinear(x, s, z)
  %s
  y = MatMul(d, w)
}"""


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        ("r = Flatten(q)\n d = DequantizeLinear(r, s, z)", "reads integers made by Flatten"),
        ("d = DequantizeLinear(q, t, z)", "another grid"),
        ("e = DequantizeLinear(q, s, z)\n f = Cast <to = 1> (q)\n d = Add(e, f)", "integers are read by other"),
        (
            "e = DequantizeLinear(q, s, z)\n p = QuantizeLinear(x, t, z)\n f = DequantizeLinear(p, t, z)"
            "\n d = Add(e, f)",
            "'x' is rounded in two ways",
        ),
        ("d = DequantizeLinear(q, x, z)", "no float32 constant"),
    ],
)
def test_what_cannot_be_simulated_is_named(middle: str, message: str) -> None:
    constants = {"s": np.float32(0.1), "z": np.uint8(3)}
    if "t" in middle:
        constants["t"] = np.float32(0.2)
    with pytest.raises(ModelError, match=message):
        split_quantizers(parse(QDQ % middle, **constants))


def test_a_bias_off_its_grid_stays_float() -> None:
    text = """g (float[N,4] x, float s, uint8 z, int8[4,2] w, float[2] v, float[2] b) => (float[N,2] y) {
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      e = DequantizeLinear <axis = 1> (w, v)
      y = Gemm(d, e, b)
    }"""
    common = {"s": np.float32(0.25), "z": np.uint8(128), "w": np.ones((4, 2), np.int8), "v": np.float32([0.5, 0.25])}
    on = split_quantizers(parse(text, b=np.float32([0.375, -0.0625]), **common))
    off = split_quantizers(parse(text, b=np.float32([0.375, -0.06]), **common))
    assert (on.placement["b"].kind, off.placement["b"].spec) == ("bias", None)
    # The last bit of the largest integers is lost in float32; that bias is on the grid all the same.
    large = split_quantizers(parse(text, b=np.float32([0.125 * (2**30 + 64), 0]), **common))
    assert large.placement["b"].kind == "bias"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.b.quantized", "a.b"), ("a.dequantized_3", "a"), ("a.quantized.dequantized", "a"), ("quantized", "quantized")],
)
def test_names(name: str, expected: str) -> None:
    assert tensor_name(name) == expected
