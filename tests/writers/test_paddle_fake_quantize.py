"""The Paddle writer's older form (onnx_format: false): its structure beside PaddleSlim's, and what it computes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ExportError, UnsupportedOperatorError
from fullquant.formats.framework_pb2 import OpDesc, ProgramDesc, VarType
from fullquant.formats.param_stream import read_combined
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.readers.program_desc import load_program
from fullquant.runtime.sessions import open_session
from fullquant.writers.program_desc import build_paddle, write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams, simulate

needs_paddle = pytest.mark.skipif(
    importlib.util.find_spec("paddle") is None, reason="Paddle Inference is the oracle (pip install paddlepaddle)"
)
CONVERTER = os.environ.get("FULLQUANT_PADDLE_LITE_OPT") or shutil.which("paddle_lite_opt")
needs_lite = pytest.mark.skipif(CONVERTER is None, reason="paddle_lite_opt is not on PATH (pip install paddlelite)")
LAYERS = ("conv2d", "depthwise_conv2d", "matmul_v2")
SHORT = PlacementOptions(scale_grid="short")


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def write(
    folder: Path, model: ir.Model, x: np.ndarray, options: PlacementOptions = SHORT, *, onnx_format: bool = False
) -> tuple[Path, np.ndarray, float]:
    """The file, what it must compute for x, and the step of its output."""
    placement = place(model, "paddle_lite", options)
    qparams = minmax_qparams(model, placement, x)
    path = folder / "m.pdmodel"
    write_paddle(model, placement, qparams, path, folder / "m.pdiparams", onnx_format=onnx_format)
    output = str(model.graph.outputs[0].name)
    expected = simulate(model, placement, qparams, x)[f"{output}@rounded"]
    owner = placement.scale_owner(output)
    return path, expected, float(qparams[owner].scale) if owner in qparams else 1.0


def operators(path: Path) -> list[OpDesc]:
    return list(ProgramDesc.FromString(path.read_bytes()).blocks[0].ops)


def bound(op: OpDesc, parameter: str) -> list[str]:
    return [name for var in (*op.inputs, *op.outputs) if var.parameter == parameter for name in var.arguments]


def attributes(op: OpDesc) -> dict[str, OpDesc.Attr]:
    return {a.name: a for a in op.attrs}


@pytest.fixture(scope="module")
def ocr(ocr_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = prepare(read_model(ocr_model_dir))
    return write(tmp_path_factory.mktemp("ocr"), model, images(2, 3, 48, 192))[0]


def shape_of_layer(ops: Sequence[OpDesc], index: int) -> tuple[str, ...]:
    """What stands around a layer: the operators that make its data and that read its output."""
    layer = ops[index]
    data = bound(layer, "Input") or bound(layer, "X")
    out = (bound(layer, "Output") or bound(layer, "Out"))[0]
    maker = next(op.type for op in ops if data[0] in bound(op, "Out"))
    readers = [op.type for op in ops if out in bound(op, "X")]
    return maker, *readers


def test_layers_stand_as_in_paddleslims_file(assets: Path, ocr: Path) -> None:
    reference = operators(assets / "reference" / "format_b" / "inference.pdmodel")
    ours = operators(ocr)
    kinds = Counter(op.type for op in reference)
    found = Counter(op.type for op in ours)
    for kind in (*LAYERS, "fake_channel_wise_dequantize_max_abs"):
        assert found[kind] == kinds[kind], kind
    around = {shape_of_layer(reference, i) for i, op in enumerate(reference) if op.type in LAYERS}
    assert {shape_of_layer(ours, i) for i, op in enumerate(ours) if op.type in LAYERS} == around
    assert around == {("fake_quantize_moving_average_abs_max", "fake_channel_wise_dequantize_max_abs")}


def test_operators_have_the_attributes_of_paddleslims_file(assets: Path, ocr: Path) -> None:
    reference = operators(assets / "reference" / "format_b" / "inference.pdmodel")
    ours = {op.type: op for op in operators(ocr)}
    for kind in (*LAYERS, "fake_quantize_moving_average_abs_max", "fake_channel_wise_dequantize_max_abs"):
        theirs = attributes(next(op for op in reference if op.type == kind))
        mine = attributes(ours[kind])
        assert {name for name in mine if name not in theirs} == set(), kind
        for name, attribute in mine.items():
            assert theirs[name].type == attribute.type, f"{kind}.{name}"
        assert {v.parameter for v in ours[kind].inputs} <= {
            v.parameter for op in reference if op.type == kind for v in op.inputs
        }
    # half to even, as the newer form and ONNX round; PaddleSlim writes half away from zero
    assert attributes(ours["fake_quantize_moving_average_abs_max"])["round_type"].i == 0


def test_weights_are_integers_in_float32_with_an_absmax_per_channel(ocr: Path) -> None:
    program = load_program(ocr)
    tensors = read_combined(ocr.with_suffix(".pdiparams"), [v.name for v in program.parameters])
    assert all(array.dtype == np.float32 for array in tensors.values())  # no integer tensors of any kind
    for op in program.ops:
        if op.type in LAYERS:
            weight = tensors[(op.inputs.get("Filter") or op.inputs["Y"])[0]]
            assert np.array_equal(weight, np.rint(weight))
            assert np.abs(weight).max() <= 127
        if op.type == "fake_channel_wise_dequantize_max_abs":
            channels, activation = (tensors[name] for name in op.inputs["Scales"])
            assert activation.shape == (1,)
            assert channels.ndim == 1
            assert op.attrs["quant_axis"] == (1 if channels.shape == (2,) and "linear" in op.outputs["Out"][0] else 0)


def test_every_operator_states_its_output_threshold(ocr: Path) -> None:
    for op in operators(ocr):
        if op.type in ("feed", "fetch") or op.type.startswith("fake_"):
            continue
        expected = "Out0_threshold" if bound(op, "XShape") else "out_threshold"
        assert expected in attributes(op), op.type


def test_persistable_variables_are_those_of_the_parameter_file(ocr: Path) -> None:
    block = ProgramDesc.FromString(ocr.read_bytes()).blocks[0]
    stored = {v.name for v in block.vars if v.persistable and v.type.type == VarType.DENSE_TENSOR}
    assert {v.name for v in load_program(ocr).parameters} == stored


OPTIONS: Mapping[str, PlacementOptions] = {
    "per channel": SHORT,
    "free scales": PlacementOptions(),
    "reduced range": PlacementOptions(reduce_range=True),
    "literal": PlacementOptions(full=False),
    "kept float": PlacementOptions(skip_patterns=("HardSwish_12", "Conv_2")),
}


@needs_paddle
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_paddle_inference_computes_the_simulation(tmp_path: Path, options: PlacementOptions) -> None:
    x = images(16, 3, 8, 8)
    path, expected, step = write(tmp_path, graphs.small_classifier(), x, options)
    result = open_session(path, "paddle", optimize=False).run({"x": x})[0]
    assert np.abs(result - expected).max() < 1e-4 * max(step, 1e-3)


@needs_paddle
def test_one_scale_per_weight(tmp_path: Path) -> None:
    x = images(16, 3, 8, 8)
    weight = np.random.default_rng(4).standard_normal((5, 3, 3, 3)).astype(np.float32)
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("HardSwish", ["c"], ["y"], {})]
    options = PlacementOptions(per_channel=False, scale_grid="short")
    path, expected, step = write(tmp_path, graphs.graph(nodes, {"w": weight}), x, options)
    kinds = Counter(op.type for op in operators(path))
    assert kinds["fake_dequantize_max_abs"] == 1
    for engine in ("paddle", "onnxruntime"):
        result = open_session(path, engine, optimize=False).run({"x": x})[0]
        # products are scaled after they are summed, so a half-way value may fall the other way
        assert np.abs(result - expected).max() < 1.01 * step
        assert np.mean(np.abs(result - expected) < 0.01 * step) > 0.99


def test_the_readers_understand_it(tmp_path: Path) -> None:
    x = images(16, 3, 8, 8)
    path, expected, step = write(tmp_path, graphs.small_classifier(), x)
    for optimize in (False, True):
        result = open_session(path, "onnxruntime", optimize=optimize).run({"x": x})[0]
        assert np.abs(result - expected).max() < 1.01 * step
        assert np.mean(np.abs(result - expected) < 0.01 * step) > 0.95


def test_paddleslims_rounding_is_refused_by_the_readers(assets: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"round_type 1 are not read.*engine paddle"):
        read_model(assets / "reference" / "format_b")


@needs_paddle
def test_a_real_network_gives_the_classes_of_the_newer_form(tmp_path: Path, ocr_model_dir: Path) -> None:
    """Half-way values fall either way and grow in a deep network, so that logits differ by steps, classes do not."""
    model = prepare(read_model(ocr_model_dir))
    x = np.repeat(np.repeat(images(16, 3, 6, 24), 8, axis=2), 8, axis=3)
    answers = []
    for onnx_format in (True, False):
        path = write(tmp_path, model, x, onnx_format=onnx_format)[0]
        answers.append(open_session(path, "paddle", optimize=False).run({"x": x})[0])
    assert np.mean(answers[0].argmax(1) == answers[1].argmax(1)) >= 15 / 16


def test_a_product_of_three_axes_is_refused_with_the_remedy() -> None:
    constants = {"w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)}
    nodes = [("Squeeze", ["x", "a"], ["s"], {}), ("MatMul", ["s", "w"], ["m"], {}), ("Add", ["m", "b"], ["y"], {})]
    model = graphs.graph(nodes, {**constants, "a": np.array([1])}, input_shape=("N", 1, 5, 8))
    placement = place(model, "paddle_lite", SHORT)
    qparams = minmax_qparams(model, placement, images(2, 1, 5, 8))
    with pytest.raises(ExportError, match=r"rank 3 .*onnx_format: true, or weight_quantize_type: abs_max"):
        build_paddle(model, placement, qparams, onnx_format=False)
    build_paddle(model, placement, qparams)


def converted(path: Path, targets: str) -> list[list[tuple[str, dict[str, tuple[float, ...]]]]]:
    """The blocks of the program that Paddle Lite makes of a file: operators with their scales."""
    out = path.parent / f"lite-{targets}"
    command = [str(CONVERTER), f"--model_file={path}", f"--param_file={path.with_suffix('.pdiparams')}"]
    command += [f"--valid_targets={targets}", "--optimize_out_type=protobuf", f"--optimize_out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    blocks = ProgramDesc.FromString((out / "model").read_bytes()).blocks
    return [[(op.type, {a.name: tuple(a.floats) for a in op.attrs if a.floats}) for op in b.ops] for b in blocks]


@needs_lite
@pytest.mark.parametrize("targets", ["arm", "x86", "verisilicon_timvx,arm"])
def test_paddle_lite_makes_the_same_program_of_both_forms(tmp_path: Path, targets: str) -> None:
    programs = []
    for onnx_format in (True, False):
        folder = tmp_path / str(onnx_format)
        folder.mkdir()
        path = write(folder, graphs.small_classifier(), images(4, 3, 8, 8), onnx_format=onnx_format)[0]
        programs.append(converted(path, targets))
    newer, older = programs
    assert not any(kind.startswith("fake_") for block in older for kind, _ in block)
    inside = zip(newer[1:], older[1:], strict=True)
    for ours, theirs in inside if "timvx" in targets else zip(newer, older, strict=True):
        if "timvx" in targets:
            assert ours == theirs  # every operator with the same scales
        else:  # float kernels know their output's scale or not; layers must be the same
            kinds = ("conv2d", "depthwise_conv2d", "fc", "matmul_v2")
            assert [op for op in ours if op[0] in kinds] == [op for op in theirs if op[0] in kinds]
