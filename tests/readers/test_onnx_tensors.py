"""Element types and places of the tensors in ONNX files: floats of 16 bits are read, quantized types are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import ModelError
from fullquant.passes import prepare
from fullquant.readers import find_model, read_model
from fullquant.readers.onnx_tensors import CONVERTED_FROM, LARGEST
from fullquant.runtime.sessions import open_session
from tests.readers.onnx_run import run
from tests.readers.test_onnx import WEIGHTS, X, classifier, external, model, saved

KINDS = {"FLOAT16": TensorProto.FLOAT16, "BFLOAT16": TensorProto.BFLOAT16}


def halved(kind: int, opset: int = 18, *, inside: bool = False) -> onnx.ModelProto:
    """The classifier in 16 bits throughout, or (inside) between Casts, with an input and an output of float32."""
    proto = classifier(opset)
    for tensor in proto.graph.initializer:
        floats = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, floats.shape, floats.reshape(-1).tolist()))
    for node in proto.graph.node:
        node.ClearField("name")
    if not inside:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = kind
        return proto
    for node in proto.graph.node:
        node.input[:] = ["half" if name == "image" else name for name in node.input]
        node.output[:] = ["last" if name == "prob" else name for name in node.output]
    proto.graph.node.insert(0, helper.make_node("Cast", ["image"], ["half"], to=kind))
    proto.graph.node.append(helper.make_node("Cast", ["last"], ["prob"], to=TensorProto.FLOAT))
    return proto


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_16_bits_become_float32_with_the_same_weights(tmp_path: Path, kind: str, opset: int, inside: bool) -> None:
    proto = halved(KINDS[kind], opset, inside=inside)
    read = read_model(saved(tmp_path, proto))
    assert read.metadata_props[CONVERTED_FROM] == kind
    for tensor in proto.graph.initializer:
        value = read.graph.initializers[tensor.name].const_value
        assert value is not None
        assert value.numpy().dtype == np.float32
        np.testing.assert_array_equal(value.numpy(), numpy_helper.to_array(tensor).astype(np.float32))
    ready = prepare(read)
    assert not {node.op_type for node in ready.graph} & {"Cast", "Identity", "Constant"}
    # 8 bits of bfloat16 and 11 of float16, in every step of the original
    np.testing.assert_allclose(run(ready, X), _expected(classifier(opset)), atol=0.02 if kind == "BFLOAT16" else 2e-3)
    if kind == "FLOAT16":
        fed = X if inside else X.astype(np.float16)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(run(ready, X), session.run(None, {"image": fed})[0], atol=2e-3)


def _expected(proto: onnx.ModelProto) -> np.ndarray:
    for node in proto.graph.node:
        node.ClearField("name")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": X})[0])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_runtimes_run_a_file_in_float16_on_float32_images(tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    (actual,) = open_session(saved(tmp_path, halved(KINDS["FLOAT16"])), engine).run({"image": X})
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, _expected(classifier(18)), atol=2e-3)


def test_float32_models_say_nothing_of_a_conversion(tmp_path: Path) -> None:
    assert CONVERTED_FROM not in read_model(saved(tmp_path, classifier(18))).metadata_props


def test_chains_of_casts_identities_and_dropout_vanish(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["b"], ["c"]), helper.make_node("Dropout", ["c"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["s"], ["f"], value=numpy_helper.from_array(np.float16([2.0]))),
        helper.make_node("Cast", ["f"], ["h"], to=TensorProto.FLOAT), helper.make_node("Mul", ["e", "h"], ["prob"]),
    ]  # fmt: skip
    ready = prepare(read_model(saved(tmp_path, model(nodes, {"s": np.int64([3, 1, 1])}))))
    assert [node.op_type for node in ready.graph] == ["Conv"]  # times 2, as the depthwise convolution that a scale is
    np.testing.assert_allclose(run(ready, X), 2 * X, rtol=1e-6)


NARROW = ["INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1"]


@pytest.mark.parametrize("kind", NARROW)
def test_types_of_quantized_models_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    number = getattr(TensorProto, kind)
    weight = helper.make_tensor("w", number, [2], [1, 0])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]), helper.make_node("Mul", ["image", "v"], ["prob"])
    ]  # fmt: skip
    proto = model(nodes, {"s": np.float32(1)}, ("n", 3, 8, 2), opset=23)
    proto.graph.initializer.append(weight)
    assert f"tensor 'w' is {kind}, a type of models that are quantized already; give" in _said(saved(tmp_path, proto))
    cast = [helper.make_node("Cast", ["image"], ["c"], to=number), helper.make_node("Cast", ["c"], ["prob"], to=1)]
    assert f"tensor 'c' is {kind}" in _said(saved(tmp_path, model(cast, {}, opset=23)))


def test_a_file_that_is_larger_than_a_message(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.write(classifier(20).SerializeToString())
        file.truncate(LARGEST + 1)  # a hole: no bytes on the disk
    message = _said(path)
    assert "has 2.1 GB, and an ONNX file (a protobuf message) holds at most 2 GB" in message
    assert "save_as_external_data=True" in message


def test_weights_of_more_than_2_gb(tmp_path: Path) -> None:
    path = external(tmp_path, "data.bin")
    proto = onnx.load(path, load_external_data=False)
    weight = next(t for t in proto.graph.initializer if t.name == "fc.weight")
    weight.dims[:] = [2**15, 2**15]
    path.write_bytes(proto.SerializeToString())
    assert "its weights have 4.3 GB, and at most 2 GB are read" in _said(path)


@pytest.mark.parametrize("location", ["data.bin", "gone.bin"])
def test_files_with_external_data_belong_to_the_model(tmp_path: Path, location: str) -> None:
    path = external(tmp_path, location)  # several tensors in one file
    (tmp_path / "other.bin").write_bytes(b"1")
    there = [path, tmp_path / location] if location == "data.bin" else [path]
    assert find_model(path).paths() == there


@pytest.mark.parametrize("location", ["../secret.bin", "absolute", "link.bin"])
def test_external_data_of_a_constant_node_stay_inside_the_folder(tmp_path: Path, location: str) -> None:
    """Tensors of attributes may have external data too; constants are as good as weights to read a file with."""
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(3, np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "own.bin").write_bytes(secret.read_bytes())
    outside = str(secret) if location == "absolute" else location
    message = _said(saved(folder, _with_external_constant(outside)))
    assert "lies outside the model's folder" in message
    read = read_model(saved(folder, _with_external_constant("own.bin")))
    np.testing.assert_array_equal(run(read, X[:, :, :, :3]), X[:, :, :, :3])


def _with_external_constant(location: str) -> onnx.ModelProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Mul", ["image", "k"], ["prob"])]
    return model(nodes, {}, ("n", 3, 8, 3))


def _said(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_the_weights_are_those_of_the_classifier() -> None:
    """What the tests above compare with is no constant function."""
    assert len({float(row.max()) for row in _expected(classifier(18))}) > 1
    assert all(np.ptp(array) > 0.5 for array in WEIGHTS.values())
