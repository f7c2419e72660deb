"""Classifiers as Keras and tf2onnx write them: NHWC images, transposes, activations in parts, SAME padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import ModelError
from fullquant.graph.layout import INPUT_LAYOUT
from fullquant.passes import prepare
from fullquant.passes.channels_first import channels_first
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.placement.place import place
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import open_session
from tests.architectures.line import float_tensors
from tests.graph.toy_models import check, operators, parse

Node = tuple[str, list[str], str, dict[str, Any]]
TO_FIRST, TO_LAST = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}


class Writer:
    """Collects nodes and constants under running names."""

    def __init__(self, opset: int = 15) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random, self.opset = np.random.default_rng(4), opset

    def constant(self, array: Any) -> str:
        name = f"const_{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def normal(self, *shape: int, scale: float = 0.5) -> str:
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def saved(self, path: Path, output: str, size: int | str = 24) -> Path:
        graph = helper.make_graph(
            self.nodes, "keras", [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["unk", size, size, 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        path.write_bytes(proto.SerializeToString())
        return path

    def hard_sigmoid(self, x: str, style: str) -> str:
        """relu6(x + 3) / 6, with the clipping as a Clip, or as Min and Max, or as a Relu and a Min."""
        y = self.op("Add", x, self.number(3))
        if style == "clip":
            y = self.op("Clip", y, self.number(0), self.number(6))
        elif style == "minmax":
            y = self.op("Max", self.op("Min", y, self.number(6)), self.number(0))
        else:
            y = self.op("Min", self.op("Relu", y), self.number(6))
        return self.op("Mul", y, self.number(1 / 6)) if style == "clip" else self.op("Div", y, self.number(6))

    def hard_swish(self, x: str, style: str) -> str:
        return self.op("Mul", x, self.hard_sigmoid(x, style))


def keras_model(path: Path, style: str, size: int | str = 24) -> Path:
    """A small MobileNetV3: rescaling in NHWC, stem, normalization behind a transpose, SE, NHWC mean, MatMul head."""
    w = Writer()
    x = w.op("Add", w.op("Mul", "input_1", w.number(1 / 127.5)), w.constant(np.float32([-1, -0.9, -1.1])))
    x = w.op("Conv", w.op("Transpose", x, **TO_FIRST), w.normal(8, 3, 3, 3, scale=0.3), auto_pad="SAME_UPPER",
             strides=[2, 2])  # fmt: skip
    x = w.op("Transpose", x, **TO_LAST)
    x = w.op("Add", w.op("Mul", x, w.normal(8)), w.normal(8))
    x = w.op("Transpose", w.hard_swish(x, style), **TO_FIRST)
    y = w.op("Conv", x, w.normal(8, 1, 3, 3), auto_pad="SAME_UPPER", group=8)
    y = w.op("BatchNormalization", y, w.normal(8), w.normal(8), w.normal(8), w.constant(np.ones(8, np.float32)))
    y = w.op("Min", w.op("Relu", y), w.number(6))
    gate = w.op("ReduceMean", w.op("Transpose", y, **TO_LAST), axes=[1, 2], keepdims=1)
    gate = w.op("Conv", w.op("Transpose", gate, **TO_FIRST), w.normal(8, 8, 1, 1), w.normal(8))
    y = w.op("Conv", w.op("Mul", y, w.hard_sigmoid(gate, style)), w.normal(8, 8, 1, 1), w.normal(8))
    x = w.op("Transpose", w.op("Add", x, y), **TO_LAST)
    x = w.op("Squeeze", w.op("ReduceMean", x, axes=[1, 2], keepdims=1), w.constant(np.int64([1, 2])))
    x = w.op("Add", w.op("MatMul", x, w.normal(8, 5)), w.normal(5))
    return w.saved(path, w.op("Softmax", x, axis=-1), size)


def images(count: int, size: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def oracle(path: Path, nhwc: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_1": nhwc})[0])


@pytest.mark.parametrize("style", ["clip", "minmax", "relu"])
def test_a_keras_model_becomes_nchw_and_all_integer(tmp_path: Path, style: str) -> None:
    path, nhwc = keras_model(tmp_path / "m.onnx", style), images(3)
    model = prepare(read_model(path))
    assert model.metadata_props[INPUT_LAYOUT] == "NHWC"
    assert str(model.graph.inputs[0].shape) == "[N,3,24,24]"
    found = {node.op_type for node in model.graph}
    assert found <= {"Conv", "HardSwish", "HardSigmoid", "Clip", "GlobalAveragePool", "Mul", "Add", "Flatten", "MatMul",
                     "Gemm", "Softmax"}  # fmt: skip
    assert {"HardSwish", "HardSigmoid", "GlobalAveragePool"} <= found
    with torch.no_grad():
        computed = GraphModule(model).eval()(torch.from_numpy(nhwc.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(computed, oracle(path, nhwc), rtol=1e-4, atol=1e-5)
    assert not float_tensors(model, place(model, "paddle_lite"))


def test_sessions_turn_images_for_a_file_in_nhwc(tmp_path: Path) -> None:
    path, nhwc = keras_model(tmp_path / "m.onnx", "clip"), images(2)
    nchw = nhwc.transpose(0, 3, 1, 2).copy()
    for engine in ("onnxruntime", "openvino"):
        if engine == "openvino":
            pytest.importorskip("openvino")
        session = open_session(path, engine)
        for fed in (nchw, nhwc):
            np.testing.assert_allclose(session.run({"input_1": fed})[0], oracle(path, nhwc), rtol=1e-4, atol=1e-5)


def test_free_sizes_are_given_as_nchw_or_as_the_file_has_them(tmp_path: Path) -> None:
    path = keras_model(tmp_path / "m.onnx", "clip", "size")
    for shape in ([-1, 3, 32, 24], [-1, 32, 24, 3]):
        model = prepare(read_model(path, input_shape={"input_1": shape}))
        assert str(model.graph.inputs[0].shape) == "[N,3,32,24]"
    with pytest.raises(ModelError, match="sizes"):
        read_model(path, input_shape={"input_1": [3, 32, 24]})


def test_an_image_whose_axes_are_used_otherwise_keeps_them() -> None:
    model = parse(
        "g (float[N,8,8,3] x, float[192,4] w) => (float[N,4] y) "
        "{ t = Transpose <perm = [0,3,1,2]> (x)  r = Relu(t)  f = Flatten(x)  m = MatMul(f, w)  "
        "g = ReduceMean <keepdims = 0> (r, all)  y = Add(m, g) }",
        all=np.int64([1, 2, 3]),
    )  # fmt: skip
    assert channels_first(model) == 0
    assert INPUT_LAYOUT not in model.metadata_props


def test_residuals_concat_and_pad_between_transposes() -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[1,1,1,4] k, float[4] b) => (float[N,8,8,9] y) "
        "{ a = Transpose <perm = [0,2,3,1]> (x)  c = Transpose <perm = [0,2,3,1]> (x)  d = Mul(a, k)  e = Add(d, c)  "
        "f = Add(e, b)  h = Concat <axis = 3> (f, d)  p = Pad(h, pads)  y = Transpose <perm = [0,3,1,2]> (p) }",
        pads=np.int64([0, 1, 2, 0, 0, 1, 1, 0]),
    )  # fmt: skip
    infer_shapes(model)
    assert check(channels_first, model) == 1
    assert "Transpose" not in operators(model)


def test_a_sum_of_two_branches_in_nhwc() -> None:
    """The second branch is found from the sum backwards; a model of residual blocks is one region."""
    model = parse(
        "g (float[N,4,6,6] x, float[4] k, float[4,4,1,1] w) => (float[N,4,6,6] y) "
        "{ a = Transpose <perm = [0,2,3,1]> (x)  b = Mul(a, k)  c = Relu(b)  "
        "d = Conv(x, w)  e = Transpose <perm = [0,2,3,1]> (d)  f = Add(e, k)  g = Mul(f, k)  h = Add(c, g)  "
        "i = Transpose <perm = [0,3,1,2]> (h)  j = Conv(i, w)  l = Transpose <perm = [0,2,3,1]> (j)  "
        "m = Add(h, l)  y = Transpose <perm = [0,3,1,2]> (m) }"
    )
    infer_shapes(model)
    assert check(channels_first, model) == 1
    assert "Transpose" not in operators(model)


@pytest.mark.parametrize("form", ["Reshape", "Unsqueeze"])
def test_squeeze_and_excitation_of_dense_layers_in_nhwc(form: str) -> None:
    """Keras: mean over the image, Dense, Reshape((1, 1, C)), times the image."""
    model = parse(
        "g (float[N,4,6,6] x, float[4,4] w) => (float[N,4,6,6] y) "
        "{ a = Transpose <perm = [0,2,3,1]> (x)  b = Relu(a)  m = ReduceMean <keepdims = 0> (b, hw)  c = MatMul(m, w)  "
        f"s = Sigmoid(c)  e = {form}(s, form)  f = Mul(b, e)  y = Transpose <perm = [0,3,1,2]> (f) }}",
        hw=np.int64([1, 2]), form=np.int64([-1, 1, 1, 4] if form == "Reshape" else [1, 2]),
    )  # fmt: skip
    infer_shapes(model)
    assert check(channels_first, model) == 1
    assert "Transpose" not in operators(model)


@pytest.mark.parametrize(
    "odd",
    [
        "e = Softmax <axis = 3> (d)",  # computed along an axis
        "e = Reshape(d, shape)",
        "e = Flatten(d)",
    ],
)
def test_a_branch_that_needs_nhwc_keeps_the_sum_as_it_is(odd: str) -> None:
    model = parse(
        "g (float[N,4,6,6] x, float[4] k) => (float[N,4,6,6] y, float e) "
        f"{{ a = Transpose <perm = [0,2,3,1]> (x)  b = Relu(a)  c = Transpose <perm = [0,2,3,1]> (x)  "
        f"d = Mul(c, k)  {odd}  h = Add(b, d)  y = Transpose <perm = [0,3,1,2]> (h) }}",
        **({"shape": np.int64([0, -1])} if "Reshape" in odd else {}),
    )  # fmt: skip
    infer_shapes(model)
    assert check(channels_first, model) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["Mul", "Add", "Relu", "HardSwish", "Sigmoid", "Sub"]), min_size=1, max_size=5),
       st.sampled_from(["mean", "mean kept", "back", "flat"]), st.integers(0, 99))  # fmt: skip
def test_any_chain_between_transposes_keeps_its_numbers(kinds: list[str], end: str, seed: int) -> None:
    body, last = "", "a"
    for index, kind in enumerate(kinds):
        body += f"v{index} = {kind}({last}{', k' if kind in ('Mul', 'Add', 'Sub') else ''})  "
        last = f"v{index}"
    tail = {
        "mean": f"y = ReduceMean <keepdims = 0> ({last}, hw)", "mean kept": f"y = ReduceMean ({last}, hw)",
        "back": f"z = Transpose <perm = [0,3,1,2]> ({last})  y = Relu(z)", "flat": f"y = Flatten({last})",
    }[end]  # fmt: skip
    rank = {"mean": "N,4", "mean kept": "N,1,1,4", "back": "N,4,5,6", "flat": "N,120"}[end]
    constants = {"hw": np.int64([1, 2])} if end.startswith("mean") else {}
    model = parse(
        f"g (float[N,4,5,6] x, float[4] k) => (float[{rank}] y) "
        f"{{ a = Transpose <perm = [0,2,3,1]> (x)  {body}{tail} }}",
        seed, **constants,
    )  # fmt: skip
    count = check(channels_first, model)
    assert count == (0 if end == "flat" else 1)
