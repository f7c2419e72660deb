"""The real models: both program formats and all layouts, against Paddle Inference on real images."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from fullquant.formats.param_stream import read_combined, write_combined, write_separate
from fullquant.graph.verify import verify
from fullquant.readers import read_model
from fullquant.readers.program_desc import load_program
from tests.readers.onnx_run import run

COUNT = 8
FORMS = ("inference.pdmodel", "inference.json")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def _listed(folder: Path) -> list[Image.Image]:
    lines = (folder / "val_list.txt").read_text().splitlines()
    step = len(lines) // COUNT
    return [Image.open(folder / line.rsplit(" ", 1)[0]).convert("RGB") for line in lines[::step][:COUNT]]


def _batch(images: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), dtype=np.float32)


def _imagenet(assets: Path, _: Path) -> np.ndarray:
    images = [np.asarray(image, np.float32)[1:225, 1:225] for image in _listed(assets / "imagenet_mini")]
    return _batch([(image - 127) / 128 for image in images])


def _cifar(assets: Path, size: int) -> np.ndarray:
    images = [image.resize((size, size), Image.Resampling.BILINEAR) for image in _listed(assets / "cifar10")]
    return _batch([(np.asarray(image, np.float32) / 255 - MEAN) / STD for image in images])


def _text_lines(assets: Path, folder: Path) -> np.ndarray:
    script = assets / "textline_cls" / "gen_textline_cls.py"
    command = [sys.executable, str(script), str(folder), "--split", "val", "--num", str(COUNT), "--padded"]
    subprocess.run(command, check=True, capture_output=True)
    images = [np.asarray(Image.open(path).convert("RGB"), np.float32) for path in sorted(folder.rglob("*.png"))]
    assert len(images) == COUNT
    return _batch([(image / 255 - 0.5) / 0.5 for image in images])


IMAGES: dict[str, Callable[[Path, Path], np.ndarray]] = {
    "efficientnet_lite0_imagenet": _imagenet,
    "resnet20_cifar10": lambda assets, _: _cifar(assets, 32),
    "resnet56_cifar10": lambda assets, _: _cifar(assets, 32),
    "mobilenetv3_large_cifar10": lambda assets, _: _cifar(assets, 64),
    "mobilenetv3_small_ocr_cls": _text_lines,
}


def paddle_inference(program: Path, params: Path, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    """Output of Paddle Inference on the CPU."""
    inference = pytest.importorskip("paddle.inference", reason="PaddlePaddle is not installed")
    config = inference.Config(str(program), str(params))
    config.disable_glog_info()
    config.disable_mkldnn()
    config.switch_ir_optim(optimize)
    predictor = inference.create_predictor(config)
    (name,) = predictor.get_input_names()
    predictor.get_input_handle(name).copy_from_cpu(x)
    predictor.run()
    (name,) = predictor.get_output_names()
    return np.asarray(predictor.get_output_handle(name).copy_to_cpu())


@pytest.mark.parametrize("name", IMAGES)
def test_both_forms_equal_paddle_on_real_images(assets: Path, tmp_path: Path, name: str) -> None:
    folder = assets / "models" / name
    x = IMAGES[name](assets, tmp_path)
    for form in FORMS:
        model = read_model(folder, form, "inference.pdiparams")
        verify(model)
        expected = paddle_inference(folder / form, folder / "inference.pdiparams", x)
        np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.05  # constant outputs would prove nothing


@pytest.mark.parametrize("name", IMAGES)
def test_both_forms_give_one_graph_up_to_names(assets: Path, name: str) -> None:
    folder = assets / "models" / name
    legacy, pir = (_structure(read_model(folder, form)) for form in FORMS)
    assert legacy == pir


def _structure(model: ir.Model) -> list[object]:
    """Nodes with their operator, attributes and inputs; an input is its place in the graph or its contents.

    The source's operator is left out: a bias that the legacy form adds along an axis is reshaped before in PIR.
    """
    place: dict[ir.Value, str] = {value: f"input {index}" for index, value in enumerate(model.graph.inputs)}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        content = value.const_value.numpy()
        digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()[:12]
        place[value] = f"{content.dtype}{list(content.shape)} {digest}"
    nodes: list[object] = []
    for index, node in enumerate(model.graph):
        attributes = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
        shape = [str(node.outputs[0].dtype), [size if isinstance(size, int) else "?" for size in node.outputs[0].shape]]
        inputs = [None if value is None else place[value] for value in node.inputs]
        nodes.append([node.op_type, attributes, inputs, shape])
        place.update({value: f"{index}.{port}" for port, value in enumerate(node.outputs)})
    return [*nodes, [place[value] for value in model.graph.outputs]]


def test_structure_notices_a_difference(ocr_model_dir: Path) -> None:
    model, other = read_model(ocr_model_dir), read_model(ocr_model_dir)
    assert _structure(model) == _structure(other)
    weight = next(value for value in other.graph.initializers.values() if len(value.shape or ()) == 4)
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.0001))
    assert _structure(model) != _structure(other)


def test_text_line_classifier(ocr_model_dir: Path) -> None:
    """Also where the assets are absent: names, shapes, metadata and outputs."""
    model = read_model(ocr_model_dir)
    graph = model.graph
    assert model.opset_imports[""] == 20
    assert str(graph.inputs[0].shape) == "[N,3,H,W]"
    assert str(graph.outputs[0].shape) == "[N,2]"
    assert model.metadata_props["fullquant.source"] == str(ocr_model_dir)
    assert model.metadata_props["fullquant.source_format"] == "program_desc"
    nodes = {node.name: node for node in graph}
    assert len(nodes) == len(graph)
    first = nodes["conv2d_0"]
    assert first.outputs[0].name == "conv2d_53.tmp_0"
    assert first.inputs[1] is not None
    assert first.inputs[1].name == "conv2d_0.w_0"
    assert nodes["depthwise_conv2d_3"].metadata_props["fullquant.op_type"] == "depthwise_conv2d"
    assert all(value.shape is not None and value.dtype is not None for node in graph for value in node.outputs)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 48, 192)).astype(np.float32)
    expected = paddle_inference(ocr_model_dir / "inference.pdmodel", ocr_model_dir / "inference.pdiparams", x)
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-4)


def test_input_shape_makes_sizes_static(ocr_model_dir: Path) -> None:
    graph = read_model(ocr_model_dir, input_shape={"x": [-1, 3, 48, 192]}).graph
    assert str(graph.inputs[0].shape) == "[N,3,48,192]"
    convolutions = [node for node in graph if node.op_type == "Conv"]
    assert str(convolutions[0].outputs[0].shape) == "[N,8,24,96]"


@pytest.fixture
def folders(ocr_model_dir: Path, tmp_path: Path) -> dict[str, Path]:
    """The text-line classifier in the two layouts of Paddle 1."""
    program = ocr_model_dir / "inference.pdmodel"
    names = [variable.name for variable in load_program(program).parameters]
    tensors = read_combined(ocr_model_dir / "inference.pdiparams", names)
    made = {name: tmp_path / name for name in ("combined", "separate")}
    for folder in made.values():
        folder.mkdir()
        (folder / "__model__").write_bytes(program.read_bytes())
    with (made["combined"] / "__params__").open("wb") as stream:
        write_combined(stream, tensors)
    write_separate(made["separate"], tensors)
    return made


@pytest.mark.parametrize("layout", ["combined", "separate"])
def test_layouts_of_paddle_1(ocr_model_dir: Path, folders: dict[str, Path], layout: str) -> None:
    assert _structure(read_model(folders[layout])) == _structure(read_model(ocr_model_dir))


def test_combined_file_is_written_as_paddle_writes_it(ocr_model_dir: Path, folders: dict[str, Path]) -> None:
    written = (folders["combined"] / "__params__").read_bytes()
    assert written == (ocr_model_dir / "inference.pdiparams").read_bytes()


def test_int8_reference_file_equals_paddle(assets: Path, tmp_path: Path) -> None:
    """PaddleSlim's own int8 file. Values on a rounding boundary may fall to the other side; classes may not."""
    folder = assets / "reference" / "format_a"
    model = read_model(folder)
    verify(model)
    weight = model.graph.initializers["conv2d_0.w_0"].const_value
    assert weight is not None
    assert weight.dtype == ir.DataType.INT8
    x = _text_lines(assets, tmp_path)
    expected = paddle_inference(folder / "inference.pdmodel", folder / "inference.pdiparams", x, optimize=False)
    actual = run(model, x)
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))
    assert np.median(np.abs(actual - expected)) < 1e-4


def test_int8_program_in_pir_form(assets: Path, tmp_path: Path) -> None:
    """Paddle's own translation of the int8 file reads as the same graph."""
    pytest.importorskip("paddle", reason="PaddlePaddle is not installed")
    folder = assets / "reference" / "format_a"
    script = """
import sys, paddle
from paddle.base import core
paddle.enable_static()
program = paddle.base.framework.Program.parse_from_string(open(sys.argv[1], "rb").read())
core.serialize_pir_program(paddle.pir.translate_to_pir(program.desc), sys.argv[2], 1, True, False, True)
"""
    command = [sys.executable, "-c", script, str(folder / "inference.pdmodel"), str(tmp_path / "inference.json")]
    subprocess.run(command, check=True, capture_output=True)
    shutil.copy(folder / "inference.pdiparams", tmp_path)
    x = np.random.default_rng(0).uniform(-1, 1, (4, 3, 48, 192)).astype(np.float32)
    np.testing.assert_array_equal(run(read_model(tmp_path), x), run(read_model(folder), x))
