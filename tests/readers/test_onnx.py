"""ONNX models of many operator sets, external data, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import ModelError, UnsupportedOperatorError
from fullquant.graph.verify import verify
from fullquant.readers import read_model
from tests.readers.onnx_run import run

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (2, 3, 8, 8)).astype(np.float32)
WEIGHTS = {
    "conv.weight": RNG.uniform(-1, 1, (4, 3, 3, 3)).astype(np.float32),
    "fc.weight": RNG.uniform(-1, 1, (4, 5)).astype(np.float32),
    "fc.bias": RNG.uniform(-1, 1, 5).astype(np.float32),
}


def classifier(opset: int, shape: Sequence[int | str] = ("batch", 3, 8, 8)) -> onnx.ModelProto:
    """Convolution, ReLU, mean over the map (whose axes moved to an input in opset 18), linear layer, softmax."""
    axes = {} if opset >= 18 else {"axes": [2, 3]}
    mean_inputs = ["act", "axes"] if opset >= 18 else ["act"]
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["conv"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["act"]),
        helper.make_node("ReduceMean", mean_inputs, ["mean"], keepdims=0, **axes),
        helper.make_node("Gemm", ["mean", "fc.weight", "fc.bias"], ["logits"], name="same"),
        helper.make_node("Softmax", ["logits"], ["prob"], name="same", axis=1),
    ]
    if opset >= 18:
        constant = numpy_helper.from_array(np.array([2, 3]), "axes_value")
        nodes.insert(0, helper.make_node("Constant", [], ["axes"], value=constant))
    return model(nodes, WEIGHTS, shape, opset)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    opset: int = 20,
    **options: Any,
) -> onnx.ModelProto:
    """A model with the input "image" and the output "prob"."""
    domains = {node.domain for node in nodes if node.domain}
    graph = helper.make_graph(
        nodes,
        "test",
        options.get("inputs") or [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        options.get("outputs") or [helper.make_tensor_value_info("prob", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=options.get("ir_version", 8))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def expected(proto: onnx.ModelProto) -> np.ndarray:
    for node in proto.graph.node:
        node.ClearField("name")  # ONNX Runtime refuses two nodes of one name
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": X})[0])


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20, 21, 22])
def test_operator_sets(tmp_path: Path, opset: int) -> None:
    proto = classifier(opset)
    read = read_model(saved(tmp_path, proto))
    verify(read)
    np.testing.assert_allclose(run(read, X), expected(proto), rtol=1e-5, atol=1e-6)
    assert read.opset_imports[""] == 20
    assert read.ir_version == 10
    assert read.metadata_props["fullquant.source_format"] == "onnx"
    values = {str(value.name) for node in read.graph for value in node.outputs}
    assert {"conv", "act", "mean", "logits", "prob"} <= values
    assert set(WEIGHTS) <= set(read.graph.initializers)
    names = [node.name for node in read.graph]
    assert names[0] == "first"
    assert len(set(names)) == len(names)
    assert all(node.metadata_props["fullquant.op_type"] == node.op_type for node in read.graph)


def test_shapes_and_constants(tmp_path: Path) -> None:
    read = read_model(saved(tmp_path, classifier(18)))
    assert str(read.graph.inputs[0].shape) == "[N,3,8,8]"
    assert str(read.graph.outputs[0].shape) == "[N,5]"
    assert all(node.op_type != "Constant" for node in read.graph)
    fixed = read_model(tmp_path / "model.onnx", input_shape={"image": [1, 3, 8, 8]})
    assert str(fixed.graph.outputs[0].shape) == "[1,5]"


def test_weights_that_are_listed_as_inputs(tmp_path: Path) -> None:
    """Files of IR version 3 list every initializer among the inputs."""
    proto = classifier(9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    read = read_model(saved(tmp_path, proto))
    assert [value.name for value in read.graph.inputs] == ["image"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    proto = model([helper.make_node("Twice", ["image"], ["prob"], domain="local")], {})
    proto.functions.append(function)
    read = read_model(saved(tmp_path, proto))
    assert [node.op_type for node in read.graph] == ["Add"]
    np.testing.assert_array_equal(run(read, X), X + X)


def external(folder: Path, location: str, *, name: str = "data.bin") -> Path:
    """A classifier whose data lie in `name`, and say that they lie in `location`."""
    proto = classifier(20)
    path = folder / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location=name, size_threshold=0)
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(moved.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path, "data.bin")
    read = read_model(path)
    (tmp_path / "data.bin").unlink()  # all of it is in memory
    np.testing.assert_allclose(run(read, X), expected(classifier(20)), rtol=1e-5, atol=1e-6)


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for location in ("../data.bin", str(tmp_path / "data.bin")):
        path = external(folder, location)
        (tmp_path / "data.bin").write_bytes((folder / "data.bin").read_bytes())
        assert "outside the model's folder" in _error(path)
    (folder / "link.bin").symlink_to(tmp_path / "data.bin")
    assert "outside the model's folder" in _error(external(folder, "link.bin"))


def test_external_data_that_is_cut_or_missing(tmp_path: Path) -> None:
    path = external(tmp_path, "data.bin")
    (tmp_path / "data.bin").write_bytes(b"1234")
    assert "'data.bin', which has 4" in _error(path)
    (tmp_path / "data.bin").unlink()
    assert "'data.bin' of" in _error(path)


def _error(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert "is not an ONNX model" in _error(path)
    path.write_bytes(b"\xff" * 50)
    assert "is not an ONNX model" in _error(path)


def test_truncated_files(tmp_path: Path) -> None:
    whole = classifier(20).SerializeToString()
    for length in range(0, len(whole), 97):
        path = tmp_path / "model.onnx"
        path.write_bytes(whole[:length])
        _error(path)


def test_weights_shorter_than_they_say(tmp_path: Path) -> None:
    proto = classifier(20)
    proto.graph.initializer[0].raw_data = b"12345678"
    assert "the data of 'conv.weight' cannot be read" in _error(saved(tmp_path, proto))


def test_inconsistent_shapes(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["image", "w"], ["prob"])]
    assert "not a valid ONNX model" in _error(saved(tmp_path, model(nodes, {"w": np.ones((3, 2), np.float32)})))


def test_several_inputs_or_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["image", "mask"], ["prob"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "mask", "prob", "sum")]
    assert "2 inputs ('image', 'mask')" in _error(saved(tmp_path, model(nodes, {}, inputs=info[:2])))
    nodes = [helper.make_node("Relu", ["image"], ["prob"]), helper.make_node("Add", ["image", "mask"], ["sum"])]
    several = saved(tmp_path, model(nodes, {}, inputs=info[:2], outputs=info[2:]))
    assert (
        "2 outputs ('prob' [1], 'sum' [1]), one is quantized: say which with Global.output_name (--output-name)"
        in _error(several)
    )
    assert "'mean', the model has 'prob' [1], 'sum' [1]; name one" in _error(several, output_name="mean")
    assert "2 inputs" in _error(several, output_name="sum")
    read = read_model(several, output_name="prob")
    assert [v.name for v in read.graph.inputs] == ["image"]
    assert [node.op_type for node in read.graph] == ["Relu"]


def test_input_that_is_no_float_image(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["image"], ["prob"], to=TensorProto.FLOAT)]
    info = [helper.make_tensor_value_info("image", TensorProto.INT32, [1, 3, 8, 8])]
    assert "a float32 image is needed" in _error(saved(tmp_path, model(nodes, {}, inputs=info)))
    info = [helper.make_tensor_value_info("image", TensorProto.FLOAT, None)]
    assert "has no shape" in _error(saved(tmp_path, model(nodes, {}, inputs=info)))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            helper.make_node("QuickGelu", ["image"], ["prob"], domain="com.microsoft"),
            r"operator 'com.microsoft::QuickGelu' \(output 'prob'\) is no operator of the ONNX standard",
        ),
        (
            helper.make_node("If", ["image"], ["prob"], then_branch=helper.make_graph([], "t", [], [])),
            "is control flow",
        ),
    ],
)
def test_unsupported_operators(tmp_path: Path, node: onnx.NodeProto, said: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=said):
        read_model(saved(tmp_path, model([node], {})))


def test_operators_that_only_a_later_set_has(tmp_path: Path) -> None:
    node = helper.make_node("RMSNormalization", ["image", "w"], ["prob"])
    with pytest.raises(UnsupportedOperatorError, match="of opset 23 has no equal"):
        read_model(saved(tmp_path, model([node], {"w": np.ones(8, np.float32)}, opset=23)))
    group = helper.make_node("GroupNormalization", ["image", "w", "w"], ["prob"], num_groups=3)
    with pytest.raises(UnsupportedOperatorError, match="of opset 21 has no equal"):
        read_model(saved(tmp_path, model([group], {"w": np.ones(3, np.float32)}, opset=21)))


def test_operator_set_that_is_too_old(tmp_path: Path) -> None:
    assert "opset 1 cannot be converted" in _error(saved(tmp_path, classifier(1)))
