"""The Paddle writer: the float round trip, the int8 file's form, and that it computes the simulation."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ExportError
from fullquant.formats.framework_pb2 import OpDesc, ProgramDesc, VarType
from fullquant.formats.param_stream import read_combined
from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.runtime.sessions import open_session
from fullquant.writers.onnx_qdq import write_onnx
from fullquant.writers.paddle_builder import OPERATOR_VERSIONS, PROGRAM_VERSION
from fullquant.writers.program_desc import build_paddle, write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams, simulate

needs_paddle = pytest.mark.skipif(
    importlib.util.find_spec("paddle") is None, reason="Paddle Inference is the oracle (pip install paddlepaddle)"
)
MODELS = {
    "efficientnet_lite0_imagenet": (224, 224),
    "mobilenetv3_large_cifar10": (64, 64),
    "mobilenetv3_small_ocr_cls": (48, 192),
    "resnet20_cifar10": (32, 32),
    "resnet56_cifar10": (32, 32),
}


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


class Placed:
    """A placed and calibrated graph with the images that it was calibrated on."""

    def __init__(self, model: ir.Model, x: np.ndarray, options: PlacementOptions | None = None) -> None:
        self.model, self.x = model, x
        self.placement: Placement = place(model, "paddle_lite", options)
        self.qparams: dict[str, QParams] = minmax_qparams(model, self.placement, x)
        self.output = str(model.graph.outputs[0].name)

    def step(self) -> float:
        return float(self.qparams[self.placement.scale_owner(self.output)].scale)

    def expected(self, x: np.ndarray) -> np.ndarray:
        return simulate(self.model, self.placement, self.qparams, x)[f"{self.output}@rounded"]

    def write(self, folder: Path) -> Path:
        path = folder / "model_int8.pdmodel"
        write_paddle(self.model, self.placement, self.qparams, path, path.with_suffix(".pdiparams"))
        return path


@pytest.fixture(scope="module")
def toy() -> Placed:
    return Placed(graphs.small_classifier(), images(8, 3, 8, 8))


@pytest.fixture(scope="module")
def ocr(ocr_model_dir: Path) -> Placed:
    return Placed(prepare(read_model(ocr_model_dir)), images(4, 3, 48, 192))


def load(path: Path) -> ProgramDesc:
    return ProgramDesc.FromString(path.read_bytes())


def parameters(path: Path) -> dict[str, np.ndarray]:
    names = [v.name for v in load(path).blocks[0].vars if v.persistable and v.name not in ("feed", "fetch")]
    return read_combined(path.with_suffix(".pdiparams"), names)


def ops(program: ProgramDesc, *types: str) -> list[OpDesc]:
    return [op for op in program.blocks[0].ops if not types or op.type in types]


def argument(op: OpDesc, parameter: str) -> str:
    (name,) = (name for var in (*op.inputs, *op.outputs) if var.parameter == parameter for name in var.arguments)
    return name


def attribute(op: OpDesc, name: str) -> float | int | None:
    for a in op.attrs:
        if a.name == name:
            return a.f if a.HasField("f") else a.i
    return None


# --- what the file computes ------------------------------------------------------------------------------------------


@needs_paddle
@pytest.mark.parametrize("name", MODELS)
def test_float_round_trip(assets: Path, tmp_path: Path, name: str) -> None:
    source = assets / "models" / name / "inference.pdmodel"
    model = prepare(read_model(source))
    write_paddle(model, None, {}, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    x = images(2, 3, *MODELS[name])
    before = open_session(source, "paddle", threads=1).run({"x": x})[0]
    after = open_session(tmp_path / "m.pdmodel", "paddle", threads=1).run({"x": x})[0]
    np.testing.assert_allclose(after, before, atol=1e-4, rtol=0)
    assert open_session(tmp_path, "onnxruntime").run({"x": x})[0] == pytest.approx(before, abs=1e-4)


@needs_paddle
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_paddle_computes_the_simulation(tmp_path: Path, optimize: bool, reduce_range: bool) -> None:
    placed = Placed(graphs.small_classifier(), images(16, 3, 8, 8), PlacementOptions(reduce_range=reduce_range))
    session = open_session(placed.write(tmp_path), "paddle", optimize=optimize, threads=1)
    x = images(16, 3, 8, 8) * 1.5  # beyond the calibrated range: clipping counts too
    actual, expected = session.run({"x": x})[0], placed.expected(x)
    assert np.abs(actual - expected).max() <= 1.001 * placed.step()
    assert np.mean(np.abs(actual - expected) > 1e-3 * placed.step()) <= 0.02
    assert session.output_names == (placed.output,)


@needs_paddle
@pytest.mark.parametrize("options", [PlacementOptions(full=False), PlacementOptions(skip_patterns=("Conv_2", "Mul"))])
def test_mixed_placements(tmp_path: Path, options: PlacementOptions) -> None:
    placed = Placed(graphs.small_classifier(), images(8, 3, 8, 8), options)
    assert any(d.consumers is not None for d in placed.placement)
    actual = open_session(placed.write(tmp_path), "paddle", threads=1).run({"x": placed.x})[0]
    np.testing.assert_allclose(actual, placed.expected(placed.x), atol=1e-5)


@needs_paddle
def test_ocr_model_computes_the_simulation(ocr: Placed, tmp_path: Path) -> None:
    actual = open_session(ocr.write(tmp_path), "paddle", threads=1).run({"x": ocr.x})[0]
    expected = ocr.expected(ocr.x)
    assert np.array_equal(actual.argmax(1), expected.argmax(1))
    # Float sums in another order turn over one rounding in 100,000, a tie within float32 precision; through 139
    # roundings in a row that grows to some steps in the output of that image. The other images agree exactly.
    difference = np.abs(actual - expected).max(axis=1)
    assert difference.max() <= 8 * ocr.step()
    assert np.median(difference) <= 1e-3 * ocr.step()


@needs_paddle
def test_both_exported_files_agree(ocr: Placed, tmp_path: Path) -> None:
    """The Paddle file in Paddle Inference and the ONNX QDQ file in ONNX Runtime, as they are written."""
    write_onnx(ocr.model, ocr.placement, ocr.qparams, tmp_path / "m.onnx")
    (onnx,) = open_session(tmp_path / "m.onnx", "onnxruntime", optimize=False).run({"x": ocr.x})
    (paddle,) = open_session(ocr.write(tmp_path), "paddle", threads=1).run({"x": ocr.x})
    assert np.array_equal(onnx.argmax(1), paddle.argmax(1))
    assert np.median(np.abs(onnx - paddle).max(axis=1)) <= 1e-3 * ocr.step()


@needs_paddle
def test_the_oracle_notices_a_wrong_scale(toy: Placed, tmp_path: Path) -> None:
    wrong = {name: replace(q, scale=q.scale * np.float32(1.5)) for name, q in toy.qparams.items()}
    path = tmp_path / "m.pdmodel"
    write_paddle(toy.model, toy.placement, wrong, path, tmp_path / "m.pdiparams")
    actual = open_session(path, "paddle", threads=1).run({"x": toy.x})[0]
    assert np.abs(actual - toy.expected(toy.x)).max() > 2 * toy.step()


@needs_paddle
def test_product_and_bias_as_two_nodes(tmp_path: Path) -> None:
    model = _matmul_with_bias()
    placed = Placed(model, images(8, 6))
    assert placed.placement["b"].kind == "bias"
    actual = open_session(placed.write(tmp_path), "paddle", threads=1).run({"x": placed.x})[0]
    np.testing.assert_allclose(actual, placed.expected(placed.x), atol=1e-5)
    scale = placed.qparams["x"].scale * placed.qparams["w"].scale
    stored = parameters(tmp_path / "model_int8.pdmodel")["b"] / scale
    np.testing.assert_allclose(stored, np.rint(stored), atol=1e-3 * np.abs(stored).max())


def _matmul_with_bias() -> ir.Model:
    constants = {"w": images(6, 5), "b": images(5)}
    return graphs.graph(
        [("MatMul", ["x", "w"], ["p"], {}), ("Add", ["p", "b"], ["y"], {})], constants, input_shape=("N", 6)
    )


# --- the form of the file --------------------------------------------------------------------------------------------


def test_weights_are_int8_and_scales_are_abs_max(ocr: Placed, tmp_path: Path) -> None:
    path = ocr.write(tmp_path)
    program, stored = load(path), parameters(path)
    weights = [d.tensor for d in ocr.placement if d.kind == "weight" and d.spec is not None]
    assert len(weights) > 50
    by_weight = {argument(op, "X"): op for op in ops(program, "dequantize_linear")}
    for name in weights:
        op, qparams = by_weight[name], ocr.qparams[name]
        scale = stored[argument(op, "Scale")]
        assert stored[name].dtype == np.int8
        assert stored[name].min() >= -127
        assert scale.dtype == np.float32
        np.testing.assert_allclose(scale, np.atleast_1d(qparams.scale) * 127, rtol=1e-6)
        assert attribute(op, "quant_axis") == (-1 if qparams.spec.axis is None else qparams.spec.axis)
        zero_point = stored[argument(op, "ZeroPoint")]
        assert zero_point.dtype == np.int32
        assert not zero_point.any()
        assert zero_point.shape == scale.shape
    float_size = sum(v.const_value.nbytes for v in ocr.model.graph.initializers.values())
    assert path.with_suffix(".pdiparams").stat().st_size < 0.4 * float_size


def test_reduced_weights_keep_the_step(tmp_path: Path) -> None:
    placed = Placed(graphs.small_classifier(), images(4, 3, 8, 8), PlacementOptions(reduce_range=True))
    path = placed.write(tmp_path)
    stored = parameters(path)
    assert np.abs(stored["w1"]).max() in (63, 64)
    np.testing.assert_allclose(stored["w1@scale"], placed.qparams["w1"].scale * 127, rtol=1e-6)


def test_scales_and_zero_points_are_not_shared_between_pairs(ocr: Placed, tmp_path: Path) -> None:
    program = load(ocr.write(tmp_path))
    linear = ops(program, "quantize_linear", "dequantize_linear")
    zero_points = Counter(argument(op, "ZeroPoint") for op in linear)
    assert max(zero_points.values()) == 1
    scales = Counter(argument(op, "Scale") for op in linear)
    assert max(scales.values()) == 2  # a quantize_linear and its dequantize_linear
    quantized = [argument(op, "Scale") for op in linear if op.type == "quantize_linear"]
    assert len(set(quantized)) == len(quantized)


def test_nothing_is_fetched_or_multiplied_without_a_rounding(ocr: Placed, tmp_path: Path) -> None:
    program = load(ocr.write(tmp_path))
    maker = {name: op.type for op in ops(program) for var in op.outputs for name in var.arguments}
    (fetch,) = ops(program, "fetch")
    assert maker[argument(fetch, "X")] == "dequantize_linear"
    assert argument(fetch, "X") == ocr.output
    for op in ops(program, "conv2d", "depthwise_conv2d"):
        assert maker[argument(op, "Input")] == maker[argument(op, "Filter")] == "dequantize_linear"
    for op in ops(program, "matmul_v2", "elementwise_mul"):
        assert maker[argument(op, "X")] == maker[argument(op, "Y")] == "dequantize_linear"


def test_only_tensors_inside_a_kernel_are_not_rounded(toy: Placed, tmp_path: Path) -> None:
    program = load(toy.write(tmp_path))
    rounded = {argument(op, "X").removesuffix(".unrounded") for op in ops(program, "quantize_linear")}
    placed = {d.tensor for d in toy.placement if d.kind == "activation" and d.spec is not None and not d.fused}
    assert rounded == placed
    assert {d.tensor for d in toy.placement if d.fused} == {"c1", "c2", "c3"}


def test_kernels_state_their_output_scale(toy: Placed, tmp_path: Path) -> None:
    program = load(toy.write(tmp_path))
    made = {name: op for op in ops(program) for var in op.outputs for name in var.arguments}
    for inside, owner in (("c1.without_bias", "r1"), ("c1", "r1"), ("r1", "r1"), ("c5.without_bias", "c5")):
        assert attribute(made[inside], "out_threshold") == pytest.approx(float(toy.qparams[owner].scale) * 127)
    assert attribute(made["f.xshape"], "out_threshold") is None


def test_bias_is_a_vector_on_the_int32_grid(toy: Placed, tmp_path: Path) -> None:
    stored = parameters(toy.write(tmp_path))
    scale = toy.qparams["x"].scale * toy.qparams["w1"].scale
    np.testing.assert_allclose(stored["b1"] / scale, np.rint(stored["b1"] / scale), atol=1e-2)
    np.testing.assert_allclose(stored["b1"], toy.model.graph.initializers["b1"].const_value.numpy(), atol=scale.max())
    assert stored["b1"].shape == (8,)
    assert stored["b1"].dtype == np.float32


def test_header_of_the_program(toy: Placed) -> None:
    program = build_paddle(toy.model, toy.placement, toy.qparams).desc
    assert program.version.version == PROGRAM_VERSION
    versions = {pair.op_name: pair.op_version.version for pair in program.op_version_map.pair}
    assert versions.items() <= OPERATOR_VERSIONS.items()
    assert {"conv2d", "elementwise_add"} <= versions.keys()
    variables = {v.name: v for v in program.blocks[0].vars}
    assert (variables["feed"].type.type, variables["fetch"].type.type) == (VarType.FEED_MINIBATCH, VarType.FETCH_LIST)
    assert variables["feed"].persistable
    assert list(variables["x"].type.dense_tensor.tensor.dims) == [-1, 3, 8, 8]
    assert not variables["x"].persistable


def test_operator_versions_are_those_of_the_reference(assets: Path) -> None:
    reference = load(assets / "reference" / "format_a" / "inference.pdmodel")
    versions = {pair.op_name: pair.op_version.version for pair in reference.op_version_map.pair}
    assert OPERATOR_VERSIONS.items() <= versions.items()
    assert reference.version.version == PROGRAM_VERSION


def test_the_same_input_gives_the_same_bytes(toy: Placed, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    paths = [toy.write(folder) for folder in (first, second)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].with_suffix(".pdiparams").read_bytes() == paths[1].with_suffix(".pdiparams").read_bytes()


def test_the_model_is_not_changed(toy: Placed, tmp_path: Path) -> None:
    before = ir.to_proto(toy.model).SerializeToString(deterministic=True)
    toy.write(tmp_path)
    assert ir.to_proto(toy.model).SerializeToString(deterministic=True) == before


def test_names_that_look_like_ours_are_kept(tmp_path: Path) -> None:
    nodes: list[tuple[str, list[str], list[str], dict[str, int]]] = [
        ("Relu", ["x"], ["x.quantized"], {}),
        ("Relu", ["x.quantized"], ["x@scale"], {}),
        ("Sigmoid", ["x@scale"], ["y"], {}),
    ]
    placed = Placed(graphs.graph(nodes, {}, input_shape=("N", 4)), images(4, 4))
    program = load(placed.write(tmp_path))
    made = [name for op in ops(program) for var in op.outputs for name in var.arguments]
    assert len(made) == len(set(made))
    assert {"x.quantized", "x@scale", "y"} <= set(made)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_source_is_never_overwritten(ocr_model_dir: Path, tmp_path: Path) -> None:
    for file in ocr_model_dir.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model = prepare(read_model(tmp_path))
    source = next(tmp_path.glob("*.pdmodel"))
    before = source.read_bytes()
    with pytest.raises(ExportError, match="never overwritten"):
        write_paddle(model, None, {}, source, source.with_suffix(".pdiparams"))
    assert source.read_bytes() == before
    write_paddle(model, None, {}, tmp_path / "new" / "m.pdmodel", tmp_path / "new" / "m.pdiparams")


def test_a_failed_export_leaves_the_old_files(toy: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy.write(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    missing = {name: qparams for name, qparams in toy.qparams.items() if name != "r1"}
    with pytest.raises(ExportError, match="'r1' has no scale"):
        write_paddle(toy.model, toy.placement, missing, path, path.with_suffix(".pdiparams"))

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fullquant.writers.program_desc.write_combined", broken)
    with pytest.raises(ExportError, match="No space left"):
        toy.write(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
