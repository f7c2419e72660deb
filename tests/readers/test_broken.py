"""Inputs that cannot be read: one line that names the file, the operator, the variable, and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fullquant.errors import FullquantError
from fullquant.formats.framework_pb2 import ProgramDesc
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import read_model
from fullquant.readers.quantized import refuse_quantized
from fullquant.writers.paddle_builder import PaddleProgram
from fullquant.writers.pir import pir_json
from tests.readers.programs import Call, write_program

#: What a user can do: each message has one of these.
_REMEDY = re.compile(
    r"\b(give|export|convert|name|names|put|say|says|replace|fetch|quantize|unpack|download|copy|must|pass|set|choose|"
    r"needed|only|use|lower|fix|write)\b"
)
W = np.ones((4, 3, 3, 3), np.float32)
F = np.ones((4, 5), np.float32)
CONV: Call = (
    "conv2d", {"Input": ["x"], "Filter": ["w"]}, {"Output": ["c"]},
    {"strides": [1, 1], "paddings": [1, 1], "dilations": [1, 1], "groups": 1, "padding_algorithm": "EXPLICIT",
     "data_format": "NCHW"},
)  # fmt: skip
POOL: Call = (
    "pool2d", {"X": ["c"]}, {"Out": ["p"]},
    {"pooling_type": "avg", "ksize": [1, 1], "adaptive": True, "global_pooling": False,
     "strides": [1, 1], "paddings": [0, 0], "ceil_mode": False, "exclusive": True, "data_format": "NCHW",
     "padding_algorithm": "EXPLICIT"},
)  # fmt: skip
FLAT: Call = ("flatten_contiguous_range", {"X": ["p"]}, {"Out": ["f"]}, {"start_axis": 1, "stop_axis": 3})
HEAD: Call = ("matmul_v2", {"X": ["f"], "Y": ["v"]}, {"Out": ["y"]}, {"trans_x": False, "trans_y": False})
CLASSIFIER = [CONV, POOL, FLAT, HEAD]
SHAPES = {"c": [-1, 4, 6, 8], "p": [-1, 4, 1, 1], "f": [-1, 4], "y": [-1, 5]}


def paddle(folder: Path, calls: list[Call] = CLASSIFIER, **options: Any) -> Path:
    """A folder with a small classifier, or what is made of it."""
    return write_program(folder, calls, {"w": W, "v": F, **options.pop("parameters", {})}, **options)


def instead(call: Call) -> Callable[[Path], Path]:
    """The classifier with another operator behind its convolution."""
    kind, inputs, outputs, attributes = call
    renamed = {**POOL[1], "X": ["k"]}
    return lambda folder: paddle(
        folder, [CONV, (kind, inputs, outputs, attributes), ("pool2d", renamed, *POOL[2:]), FLAT, HEAD]
    )


def operator(kind: str, **attributes: Any) -> Callable[[Path], Path]:
    return instead((kind, {"X": ["c"]}, {"Out": ["k"]}, attributes))


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """The classifier with one file changed."""

    def build(folder: Path) -> Path:
        path = paddle(folder) / name
        path.write_bytes(change(path.read_bytes()))
        return folder

    return build


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def onnx_classifier(
    extra: list[onnx.NodeProto] | None = None, *, elem: int = TensorProto.FLOAT, shape: Any = ("n", 3, 8, 8),
    opset: int = 17, weight: np.ndarray | None = None, read: str = "c", leave_out: tuple[str, ...] = (), **more: Any,
) -> onnx.ModelProto:  # fmt: skip
    """Conv, what is given, global pool, Flatten, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first", pads=[1, 1, 1, 1]),
        *(extra or []),
        helper.make_node("GlobalAveragePool", [read], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], "head"),
    ]
    tensors = {"w": W if weight is None else weight, "v": F, **more.get("tensors", {})}
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items() if name not in leave_out]
    inputs = [helper.make_tensor_value_info("x", elem, shape), *more.get("inputs", [])]
    outputs = [helper.make_tensor_value_info("y", elem, ("n", 5)), *more.get("outputs", [])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, kept)
    domains = [helper.make_opsetid("", opset), *more.get("domains", [])]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def saved(proto: onnx.ModelProto, change: Callable[[bytes], bytes] = lambda data: data) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(change(proto.SerializeToString()))
        return path

    return build


def misnamed(build: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """The model's file under another name."""

    def rename(folder: Path) -> Path:
        given = build(folder)
        path = given if given.is_file() else folder / "model.pdmodel"
        return path.rename(folder / name)

    return rename


def node(kind: str, inputs: list[str] | None = None, domain: str = "", **attributes: Any) -> Callable[[Path], Path]:
    """The ONNX classifier with one more operator behind its convolution."""
    made = helper.make_node(kind, inputs or ["c"], ["k"], "odd", domain=domain, **attributes)
    domains = [helper.make_opsetid(domain, 1)] if domain else []
    return saved(onnx_classifier([made], read="k", domains=domains, tensors={
        "s": np.float32(0.1), "z": np.uint8(0), "r": np.ones((1, 16, 8), np.float32), "u": np.array([0.1], np.float32),
        "ratio": np.float32(0.5), "on": np.array(True), "g": np.ones(4, np.float32),
    }))  # fmt: skip


def integers(kind: str, inputs: list[str], result: int = TensorProto.INT32) -> Callable[[Path], Path]:
    """The ONNX classifier with a layer of its own between a dynamic quantizer and a cast."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["c"], ["a", "as", "az"], "quantizer"),
        helper.make_node(kind, inputs, ["b"], "odd"),
        helper.make_node("Cast", ["b"], ["k"], "cast", to=TensorProto.FLOAT),
    ]
    return saved(onnx_classifier(nodes, read="k", tensors={
        "i": np.ones((4, 4, 1, 1), np.uint8), "j": np.ones((8, 8), np.uint8), "s": np.float32(0.1), "z": np.uint8(0),
    }))  # fmt: skip


def branch(kind: str, **attributes: Any) -> Callable[[Path], Path]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["b"])], "body", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    made = helper.make_node(kind, ["q"], ["k"], "odd", **dict.fromkeys(attributes, body))
    return saved(onnx_classifier([made], read="k", tensors={"q": np.array(True)}))


def pir(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    """A Paddle 3 program, changed. `first`: its first operator that computes."""

    def build(folder: Path) -> Path:
        path = float_pir(folder)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        return folder

    return build


# name -> (what is given, words that the message must hold)
CASES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    # ---- no model; other files: test_refusals.py
    "nothing": (lambda folder: folder / "no_such_model", ("no_such_model", "no such file")),
    "empty folder": (lambda folder: folder, ("no model here", "empty")),
    "model one folder down": (
        lambda folder: [(folder / "inference").mkdir(), paddle(folder / "inference"), folder][2],
        ("no model here", "give", "/inference"),
    ),
    "onnx named pdmodel": (misnamed(saved(onnx_classifier()), "net.pdmodel"), ("an ONNX model", "net.onnx")),
    "onnx named json": (misnamed(saved(onnx_classifier()), "net.json"), ("an ONNX model", "net.onnx")),
    "onnx without an ending": (misnamed(saved(onnx_classifier()), "net"), ("an ONNX model", "net.onnx")),
    "pdmodel named onnx": (misnamed(paddle, "net.onnx"), ("a Paddle program", "net.pdmodel")),
    "pdmodel named json": (misnamed(paddle, "net.json"), ("a Paddle program", "net.pdmodel")),
    "json named onnx": (misnamed(lambda folder: float_pir(folder), "net.onnx"), ("a Paddle 3 program", "net.json")),
    "json named pdmodel": (
        misnamed(lambda folder: float_pir(folder), "net.pdmodel"),
        ("a Paddle 3 program", "net.json"),
    ),
    "weight and bias in each other's place": (
        lambda folder: paddle(folder, parameters={"w": F, "v": W}),
        ("'conv2d'", "'w' of shape [4, 5]", "too few axes"),
    ),
    "two models": (
        lambda folder: [paddle(folder), (folder / "other.pdmodel").write_bytes(b"")][0],
        ("model.pdmodel, other.pdmodel", "model_filename"),
    ),
    # ---- legacy Paddle programs
    "unknown": (operator("squash_v9"), ("model.pdmodel", "'squash_v9'", "'k'", "ONNX")),
    "while": (operator("while"), ("model.pdmodel", "'while'", "control flow")),
    "conditional block": (operator("conditional_block"), ("'conditional_block'", "control flow")),
    "lstm": (operator("lstm"), ("'lstm'", "'k'", "recurrent")),
    "rnn": (operator("rnn"), ("'rnn'", "'k'", "recurrent")),
    "gru": (operator("gru"), ("'gru'", "'k'", "recurrent")),
    "another attention of GPUs": (
        operator("flash_attn_unpadded"),
        ("'flash_attn_unpadded'", "attention kernel of GPUs"),
    ),
    "quantizer of channels": (
        operator("fake_channel_wise_quantize_abs_max"),
        ("'k'", "quantized already", "float model"),
    ),
    "several unknown": (
        lambda folder: paddle(
            folder,
            [
                CONV,
                ("odd_a", {"X": ["c"]}, {"Out": ["k"]}, {}),
                ("odd_a", {"X": ["k"]}, {"Out": ["l"]}, {}),
                ("odd_b", {"X": ["l"]}, {"Out": ["m"]}, {}),
                ("pool2d", {"X": ["m"]}, *POOL[2:]),
                FLAT,
                HEAD,
            ],
        ),
        ("3 operators of 2 types", "'odd_a' (2 times", "'odd_b'", "'m'"),
    ),
    "quantizer": (operator("fake_quantize_range_abs_max"), ("'fake_quantize_range_abs_max'", "quantized", "float")),
    "moving average quantizer": (operator("quantize"), ("'quantize'", "quantized already", "float model")),
    "missing parameter": (
        lambda folder: paddle(folder, [CONV, POOL, FLAT, ("matmul_v2", {"X": ["f"], "Y": ["gone"]}, *HEAD[2:])]),
        ("model.pdmodel", "'matmul_v2'", "'gone'"),
    ),
    "parameter of another shape": (
        lambda folder: paddle(folder, parameters={"w": np.ones((4, 2, 3, 3), np.float32)}),
        ("'conv2d'", "'c'"),
    ),
    "head of another size": (
        lambda folder: paddle(folder, parameters={"v": np.ones((7, 5), np.float32)}),
        ("'matmul_v2'", "'y'"),
    ),
    "program cut": (bytes_of("model.pdmodel", lambda data: data[: len(data) // 2]), ("model.pdmodel",)),
    "program of noise": (bytes_of("model.pdmodel", lambda data: bytes(range(255, 0, -1)) * 4), ("model.pdmodel",)),
    "empty program": (bytes_of("model.pdmodel", lambda data: b""), ("model.pdmodel",)),
    "program of words": (
        bytes_of("model.pdmodel", lambda data: b"hello world, not a program\n" * 9),
        ("model.pdmodel",),
    ),
    "parameters cut": (bytes_of("model.pdiparams", lambda data: data[:-40]), ("model.pdiparams", "'w'")),
    "parameters too long": (bytes_of("model.pdiparams", lambda data: data + data), ("model.pdiparams",)),
    "parameters empty": (bytes_of("model.pdiparams", lambda data: b""), ("model.pdiparams",)),
    "parameters of another model": (
        bytes_of("model.pdiparams", lambda data: data.replace(b"\x08\x05\x10\x04", b"\x08\x05\x10\x09")),
        ("model.pdiparams",),
    ),
    "parameters are an image": (
        bytes_of("model.pdiparams", lambda data: b"\x89PNG\r\n\x1a\n" + data),
        ("model.pdiparams", "image"),
    ),
    "no parameter file": (
        lambda folder: [paddle(folder), (folder / "model.pdiparams").unlink()][0],
        ("model.pdmodel", "model.pdiparams"),
    ),
    "two inputs": (
        lambda folder: paddle(
            folder,
            [
                ("elementwise_add", {"X": ["x"], "Y": ["x2"]}, {"Out": ["q"]}, {"axis": -1}),
                ("conv2d", {"Input": ["q"], "Filter": ["w"]}, *CONV[2:]),
                *CLASSIFIER[1:],
            ],
            inputs=("x", "x2"),
        ),
        ("model.pdmodel", "'x2'"),
    ),
    "two outputs": (lambda folder: paddle(folder, outputs=("y", "f")), ("model.pdmodel", "'y'", "'f'", "output_name")),
    "an output that nobody makes": (
        lambda folder: paddle(folder, outputs=("nowhere",)),
        ("model.pdmodel", "'nowhere'"),
    ),
    "a variable that is read before it is made": (
        lambda folder: paddle(folder, [POOL, CONV, FLAT, HEAD]),
        ("model.pdmodel", "'c'"),
    ),
    # ---- ONNX
    "custom domain": (node("Swirl", domain="com.example"), ("model.onnx", "Swirl", "'k'", "standard")),
    "microsoft's operator": (node("FusedConv", domain="com.microsoft"), ("FusedConv", "'k'", "optimizations")),
    "no such operator": (node("Swirl"), ("model.onnx", "Swirl")),
    "if": (branch("If", then_branch=1, else_branch=1), ("model.onnx", "'If'", "'k'", "control flow")),
    "loop": (node("Loop", ["c"], body=onnx_classifier().graph), ("'Loop'", "'k'", "control flow")),
    "scan": (node("Scan", ["c"], body=onnx_classifier().graph, num_scan_inputs=1), ("'Scan'", "control flow")),
    "onnx lstm": (node("LSTM", ["c", "r", "r"], hidden_size=8), ("'LSTM'", "'k'", "recurrent")),
    "onnx gru": (node("GRU", ["c", "r", "r"], hidden_size=8), ("'GRU'", "recurrent")),
    "onnx rnn": (node("RNN", ["c", "r", "r"], hidden_size=8), ("'RNN'", "recurrent")),
    "sequence": (node("SplitToSequence"), ("'SplitToSequence'", "'k'", "sequence of tensors", "dynamo=True")),
    "sequence joined": (node("ConcatFromSequence", axis=1), ("'ConcatFromSequence'", "sequence of tensors")),
    "optional": (node("OptionalGetElement"), ("'OptionalGetElement'", "sequence of tensors")),
    "random numbers": (node("RandomNormalLike"), ("'RandomNormalLike'", "'k'", "random numbers", "evaluation")),
    "dropout in training": (node("Dropout", ["c", "ratio", "on"]), ("'Dropout'", "'k'", "training mode", "evaluation")),
    "batch statistics": (
        node("BatchNormalization", ["c", "g", "g", "g", "g"], training_mode=1),
        ("'BatchNormalization'", "'k'", "training mode", "evaluation"),
    ),
    "microsoft's quantizer": (node("QLinearAdd", domain="com.microsoft"), ("QLinearAdd", "'k'", "quantized already")),
    "integer convolution": (
        integers("ConvInteger", ["a", "i"]),
        ("'DynamicQuantizeLinear'", "'a'", "quantized already"),
    ),
    "integer product": (integers("MatMulInteger", ["a", "j"]), ("'DynamicQuantizeLinear'", "'a'", "quantized already")),
    "qlinear": (
        integers("QLinearConv", ["a", "as", "az", "i", "s", "z", "s", "z"], result=TensorProto.UINT8),
        ("'DynamicQuantizeLinear'", "'a'", "quantized already"),
    ),
    "missing initializer": (saved(onnx_classifier(leave_out=("v",))), ("model.onnx", "'v'")),
    "weight of another shape": (
        saved(onnx_classifier(weight=np.ones((4, 2, 3, 3), np.float32))),
        ("model.onnx", "'Conv'", "'w'", "2 channels", "'x' has 3"),
    ),
    "onnx cut": (saved(onnx_classifier(), lambda data: data[: len(data) // 2]), ("model.onnx",)),
    "onnx of noise": (saved(onnx_classifier(), lambda data: bytes(range(255, 0, -1)) * 4), ("model.onnx",)),
    "empty onnx": (saved(onnx_classifier(), lambda data: b""), ("model.onnx",)),
    "onnx of words": (saved(onnx_classifier(), lambda data: b"hello world\n" * 9), ("model.onnx",)),
    "onnx of two inputs": (
        saved(
            onnx_classifier(
                [helper.make_node("Add", ["c", "x2"], ["k"], "odd")],
                read="k",
                inputs=[helper.make_tensor_value_info("x2", 1, ("n", 4, 8, 8))],
            )
        ),
        ("model.onnx", "'x2'"),
    ),
    "onnx of two outputs": (
        saved(onnx_classifier(outputs=[helper.make_tensor_value_info("f", 1, ("n", 4))])),
        ("model.onnx", "'y'", "'f'", "output_name"),
    ),
    "token numbers": (saved(onnx_classifier(elem=TensorProto.INT64)), ("model.onnx", "'x'")),
    "external data away": (
        lambda folder: _external(folder, "gone.bin"),
        ("gone.bin",),
    ),
    "external data outside": (lambda folder: _external(folder, "../secret.bin"), ("../secret.bin",)),
    # ---- Paddle 3
    "json of something else": (file("package.json", b'{"name": "app", "version": "1.0"}'), ("package.json",)),
    "json cut": (lambda folder: _json(folder, lambda text: text[: len(text) // 2]), (".json",)),
    "unknown pir operator": (pir(lambda d: _first(d).update({"#": "1.squash_v9"})), ("squash_v9",)),
    "pir while": (pir(lambda d: _first(d).update({"#": "0.while"})), ("while",)),
    "future pir": (pir(lambda d: d["base_code"].update({"version": 99})), (".json",)),
}


def _external(folder: Path, location: str) -> Path:
    proto = onnx_classifier()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return saved(proto)(folder)


def float_pir(folder: Path) -> Path:
    """The classifier as a Paddle 3 program beside its parameters."""
    desc = ProgramDesc.FromString((paddle(folder, variables=SHAPES) / "model.pdmodel").read_bytes())
    (folder / "model.pdmodel").unlink()
    path = folder / "model.json"
    path.write_bytes(pir_json(PaddleProgram(desc, {"w": W, "v": F})))
    return path


def _json(folder: Path, change: Callable[[str], str]) -> Path:
    path = float_pir(folder)
    path.write_text(change(path.read_text()))
    return folder


def _operators(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["program"]["regions"][0]["blocks"][0]["ops"]
    return found


def _first(document: dict[str, Any]) -> dict[str, Any]:
    """The first operator that computes."""
    return next(op for op in _operators(document) if "conv2d" in op["#"])


def read(path: Path) -> None:
    """As far as `fullquant quantize` goes before it looks at images."""
    model = read_model(path)
    refuse_quantized(model, model.metadata_props["fullquant.model_file"])
    place(prepare(model), "paddle_lite", PlacementOptions())


def test_the_models_that_are_broken_here_are_read_when_they_are_whole(tmp_path: Path) -> None:
    for name, build in (("legacy", paddle), ("pir", float_pir), ("onnx", saved(onnx_classifier()))):
        folder = tmp_path / name
        folder.mkdir()
        read(build(folder))


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_the_thing_and_the_remedy(tmp_path: Path, name: str) -> None:
    build, words = CASES[name]
    given = build(tmp_path)
    with pytest.raises(FullquantError) as caught:
        read(given)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert _REMEDY.search(message), message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("form", ["model.pdmodel", "model.json", "model.onnx", "model.pdiparams"])
@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_damage_gives_an_error_of_ours_or_a_model(
    tmp_path_factory: pytest.TempPathFactory, form: str, cut: float, flips: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    {"model.json": float_pir, "model.onnx": saved(onnx_classifier())}.get(form, paddle)(folder)
    path = folder / form
    data = bytearray(path.read_bytes())
    for place_of, value in flips:
        data[min(len(data) - 1, int(place_of * len(data)))] = value
    path.write_bytes(bytes(data[: int(cut * len(data))] if not flips else data))
    said = ""
    try:
        read(folder if form != "model.onnx" else path)
    except FullquantError as error:
        said = str(error)
    assert "\n" not in said


def test_a_length_of_terabytes_is_not_allocated(tmp_path: Path) -> None:
    paddle(tmp_path)
    path = tmp_path / "model.pdiparams"
    data = path.read_bytes()
    # TensorDesc of v: 6 bytes, type 5 (float32), sizes 4 and 5; a size of 2**40 is a varint of six bytes
    honest = b"\x06\x00\x00\x00\x08\x05\x10\x04\x10\x05"
    claims = b"\x0b\x00\x00\x00\x08\x05\x10\x80\x80\x80\x80\x80\x20\x10\x05"
    assert data.count(honest) == 1
    path.write_bytes(data.replace(honest, claims))
    with pytest.raises(FullquantError, match=r"model\.pdiparams.*needs 21990232555520 bytes"):
        read(tmp_path)
