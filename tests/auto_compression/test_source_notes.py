"""Files in NHWC and in float16: images are fed as always, and the report says what became of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fullquant import AutoCompression, evaluate, quantize
from fullquant.auto_compression.from_config import default_config, with_image_of_model
from fullquant.auto_compression.inspection import inspect_model
from fullquant.auto_compression.loaders import train_loader
from fullquant.auto_compression.reporting import own_normalisation, source_notes
from fullquant.config import Global
from fullquant.errors import DataError
from fullquant.passes import prepare
from fullquant.readers import read_model
from tests.graph.toy_models import parse
from tests.readers.test_keras_style import keras_model
from tests.readers.test_onnx import classifier, model, saved
from tests.readers.test_onnx_tensors import KINDS, halved
from tests.readers.test_pixels import pixel_model


def test_what_is_said_of_a_file(tmp_path: Path) -> None:
    keras = prepare(read_model(keras_model(tmp_path / "keras.onnx", "clip")))
    (note,) = source_notes(keras)
    assert "(NHWC); the files written here take 'input_1' as [N, channels, height, width] (NCHW)" in note
    (note,) = source_notes(prepare(read_model(saved(tmp_path, halved(KINDS["FLOAT16"])))))
    assert "is in float16; it was read in float32, with the same weights" in note
    assert source_notes(prepare(read_model(saved(tmp_path, classifier(18))))) == []


def test_the_size_of_the_image_is_found_in_nhwc(tmp_path: Path) -> None:
    fixed = keras_model(tmp_path / "keras.onnx", "clip")
    found = with_image_of_model(Global(model_dir=str(fixed)))
    assert (found.img_size, found.resize_size, found.channel_order) == ((24, 24), 28, "rgb")
    free = keras_model(tmp_path / "free.onnx", "clip", "size")
    assert with_image_of_model(Global(model_dir=str(free))).img_size == (224, 224)
    given = with_image_of_model(Global(model_dir=str(free), input_shape=(-1, 3, 40, 32)))
    assert given.img_size == (40, 32)
    for size in ((32, 40), (24, 24)):
        assert inspect_model(free, image_size=size).inputs[0].shape == ("N", 3, *size)


def test_signals_of_width_one_keep_their_order(tmp_path: Path) -> None:
    """[N, 8, 100, 1] may be 8 channels of a signal: arrays are taken as the graph has them."""
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["p"]),
             helper.make_node("Flatten", ["p"], ["prob"])]  # fmt: skip
    path = saved(tmp_path, model(nodes, {"w": np.ones((4, 8, 5, 1), np.float32)}, ("n", 8, 100, 1)))
    batches = [{"image": np.ones((2, 8, 100, 1), np.float32)}]
    AutoCompression(path, lambda: batches, save_dir=tmp_path / "out", config={"QuantPost": {}}, progress=False)
    wrong = [{"image": np.ones((2, 1, 8, 100), np.float32)}]
    made = AutoCompression(path, lambda: wrong, save_dir=tmp_path / "out", config={"QuantPost": {}}, progress=False)
    with pytest.raises(DataError, match="shape"):
        made.data.calibration(2)


@pytest.mark.slow
def test_a_keras_model_is_quantized_and_evaluated(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), keras_model(tmp_path / "keras.onnx", "clip")
    rows = []
    for index in range(12):
        pixels = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png {index % 5}")
    for name in ("train_list.txt", "val_list.txt"):
        (tmp_path / name).write_text("\n".join(rows))
    config = default_config(path, tmp_path, ptq=True, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    result = quantize(config, tmp_path / "out", progress=False)
    assert any("(NHWC)" in note for note in result.record.notes)
    same = {row.same_as_simulated for row in result.record.rows if row.engine == "onnxruntime"}
    assert same == {1.0}
    (row,) = evaluate(config, path, progress=False)  # the file in NHWC itself
    (floats,) = [r for r in result.record.rows if r.engine == "float"]
    assert row.top1 == floats.top1


FRONTS = {
    "Sub(x, t)  n = Div(a, s)": ("Sub", "Div"),
    "Mul(s, x)  n = Add(a, t)": ("Mul", "Add"),
    "Identity(x)  n = Mul(a, s)": ("Mul",),
    "Sub(s, x)  n = Relu(a)": ("Sub",),
    "Relu(x)  n = Mul(a, s)": (),
    "Mul(x, x)  n = Identity(a)": (),
}


@pytest.mark.parametrize("front", FRONTS)
def test_a_model_that_normalises_its_images_itself(front: str) -> None:
    constants = {name: np.float32(0.5) for name in "st" if f"{name}," in front or f", {name})" in front}
    graph = f"g (float[N,3,8,8] x, float[4,3,3,3] w) => (float y) {{ a = {front}  y = Conv(n, w) }}"
    assert own_normalisation(parse(graph, **constants)) == FRONTS[front]


@pytest.mark.parametrize(("mean", "said"), [(0.485, True), (0.0, False)])
def test_images_that_are_normalised_twice(tmp_path: Path, mean: float, said: bool) -> None:
    path = pixel_model(tmp_path / "model.onnx", "NHWC, cast first")
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(proto, path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train_list.txt").write_text("a.png 0\n")
    section = Global(data_dir=str(tmp_path), img_size=(8, 8), resize_size=8, batch_size=1, mean=(mean,), std=(1.0,))
    config = {"Global": {}, "QuantPost": {}}
    job = AutoCompression(path, train_loader(section), save_dir=tmp_path / "out", config=config, progress=False)
    remarks = [remark for remark in job._remarks if "normalises its images itself (Sub, Mul in front" in remark]
    assert bool(remarks) is said
