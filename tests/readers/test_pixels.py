"""Models that take uint8 images: what is read is the same function of float32 images with the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import ModelError
from fullquant.passes import prepare
from fullquant.readers import read_model
from fullquant.readers.pixels import TAKES_PIXELS
from fullquant.runtime.sessions import open_session
from tests.graphs import small_classifier
from tests.readers.onnx_run import run
from tests.readers.programs import Call, write_program

PADDLE = importlib.util.find_spec("paddle") is not None
PIXELS = np.random.default_rng(3).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
FLOATS = PIXELS.astype(np.float32)
MEAN = np.float32([123.675, 116.28, 103.53])
STD = np.float32([58.395, 57.12, 57.375])
CAST: dict[str, Any] = {"to": TensorProto.FLOAT}
# name -> the operators in front of the classifier, (operator, constant or None, attributes)
FRONTS: dict[str, list[tuple[str, np.ndarray | None, dict[str, Any]]]] = {
    "cast": [("Cast", None, CAST), ("Sub", MEAN.reshape(1, 3, 1, 1), {}), ("Div", STD.reshape(3, 1, 1), {})],
    "NHWC, cast first": [
        ("Cast", None, CAST), ("Sub", MEAN, {}), ("Mul", 1 / STD, {}), ("Transpose", None, {"perm": [0, 3, 1, 2]}),
    ],
    "NHWC, cast last": [
        ("Transpose", None, {"perm": [0, 3, 1, 2]}), ("Cast", None, CAST), ("Mul", np.float32(1 / 255), {}),
    ],
}  # fmt: skip


def pixel_model(path: Path, front: str) -> Path:
    """small_classifier behind uint8 pixels and a normalisation of its own."""
    proto = ir.to_proto(small_classifier())
    graph = proto.graph
    image = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["normal" if name == image else name for name in node.input]
    current = image
    for index, (kind, constant, attributes) in enumerate(FRONTS[front]):
        last = index + 1 == len(FRONTS[front])
        inputs, result = [current], "normal" if last else f"front_{index}"
        if constant is not None:
            graph.initializer.append(numpy_helper.from_array(np.asarray(constant, np.float32), f"k_{index}"))
            inputs.append(f"k_{index}")
        graph.node.insert(index, helper.make_node(kind, inputs, [result], name=f"front_{index}", **attributes))
        current = result
    sizes = ["n", 8, 8, 3] if front.startswith("NHWC") else ["n", 3, 8, 8]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(image, TensorProto.UINT8, sizes))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("front", FRONTS)
def test_the_cast_is_left_out(tmp_path: Path, front: str) -> None:
    path = pixel_model(tmp_path / "model.onnx", front)
    read = read_model(path)
    assert read.metadata_props[TAKES_PIXELS] == "UINT8"
    assert read.graph.inputs[0].dtype == ir.DataType.FLOAT
    # The session takes the same float images as every other file, and hands the runtime its uint8.
    file = open_session(path, "onnxruntime", optimize=False)
    (expected,) = file.run({file.input_names[0]: FLOATS})
    prepared = prepare(read)
    assert "Cast" not in {node.op_type for node in prepared.graph}
    assert str(prepared.graph.inputs[0].shape).endswith(",3,8,8]")
    np.testing.assert_allclose(run(prepared, FLOATS), expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected) > 1e-3


def test_openvino_takes_them_too(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = pixel_model(tmp_path / "model.onnx", "cast")
    results = []
    for engine in ("onnxruntime", "openvino"):
        session = open_session(path, engine)
        results.append(session.run({session.input_names[0]: FLOATS})[0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attributes", "said"),
    [
        ("Cast", {"to": TensorProto.INT32}, "read by operator 'Cast'"),
        ("Identity", {}, "returned"),
        ("MaxPool", {"kernel_shape": [2, 2]}, "read by operator 'MaxPool'"),
    ],
)
def test_integers_that_are_computed_with_are_refused(
    tmp_path: Path, kind: str, attributes: dict[str, Any], said: str
) -> None:
    nodes = [helper.make_node(kind, ["image"], ["y"], **attributes)]
    out = attributes.get("to", TensorProto.UINT8)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", out, None)],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelError, match=r"input 'image' is uint8, and .*; only a cast to float32") as caught:
        read_model(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- Paddle --------------------------------------------------------------------------------------------------------

FLOAT32, INT32 = 5, 2
SHAPE = (-1, 3, 8, 8)


def program(folder: Path, *, to: int = FLOAT32, moved: bool = False) -> Path:
    """y = relu(cast(x)), with a transposition of the integers in between."""
    folder.mkdir()
    calls: list[Call] = [
        ("cast", {"X": ["x"]}, {"Out": ["a"]}, {"in_dtype": 20, "out_dtype": to}),
        ("scale", {"X": ["a"]}, {"Out": ["y"]}, {"scale": 0.5, "bias": -1.0, "bias_after_scale": True}),
    ]
    if moved:
        calls[0] = ("cast", {"X": ["t"]}, {"Out": ["a"]}, {"in_dtype": 20, "out_dtype": to})
        calls.insert(0, ("transpose2", {"X": ["x"]}, {"Out": ["t"]}, {"axis": [0, 1, 3, 2]}))
    return write_program(folder, calls, input_shape=SHAPE, input_dtype="uint8", variables={"a": SHAPE, "y": SHAPE})


@pytest.mark.parametrize("moved", [False, True])
def test_a_paddle_program(tmp_path: Path, moved: bool) -> None:
    read = read_model(program(tmp_path / "model", moved=moved))
    assert read.metadata_props[TAKES_PIXELS] == "UINT8"
    expected = FLOATS.transpose(0, 1, 3, 2) if moved else FLOATS
    np.testing.assert_array_equal(run(prepare(read), FLOATS), expected * np.float32(0.5) - 1)


@pytest.mark.skipif(not PADDLE, reason="needs paddlepaddle")
def test_paddle_itself_gets_its_integers(tmp_path: Path) -> None:
    session = open_session(program(tmp_path / "model"), "paddle", optimize=False)
    (outputs,) = session.run({session.input_names[0]: FLOATS})
    np.testing.assert_array_equal(outputs, FLOATS * np.float32(0.5) - 1)


def test_a_paddle_program_that_computes_with_integers(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input 'x' is uint8, and read by operator 'cast' \('a'\); only a cast"):
        read_model(program(tmp_path / "model", to=INT32))
