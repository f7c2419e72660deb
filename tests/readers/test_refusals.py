"""Broken and unsuitable models: one line that names the file, the operator or variable, and the remedy."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import FullquantError, ModelError
from fullquant.readers import read_model
from tests.readers.programs import Call, unary, write_program

W = np.array([1, 2, 3], np.float32)
SCALED: list[Call] = [("elementwise_mul", {"X": ["x"], "Y": ["w"]}, {"Out": ["y"]}, {"axis": 1})]


def said(path: Path, *, read: Path | None = None, **options: Any) -> str:
    """What is said about the file `path` when it, or the folder `read`, is read."""
    with pytest.raises(ModelError) as caught:
        read_model(read or path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert ";" in message, f"no remedy: {message}"
    return message


# ---- files that are no models --------------------------------------------------------------------------------------

WRONG = {
    "photo.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "is an image"),
    "photo.jpg": (b"\xff\xd8\xff\xe0" + bytes(40), "is an image"),
    "photo.gif": (b"GIF89a" + bytes(40), "is an image"),
    "inference.onnx": (b"\x89PNG\r\n\x1a\n" + bytes(40), "is an image"),
    "model.pt": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "model.pth": (b"\x80\x02}q" + bytes(40), "pickle"),
    "model.pdparams": (b"\x80\x04}q" + bytes(40), "pickle"),
    "model.h5": (b"\x89HDF\r\n" + bytes(40), "Keras"),
    "model.tar.gz": (b"\x1f\x8b" + bytes(40), "gzip"),
    "model.tar": (bytes(40), "tar archive"),
    "model.pdmodel": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "page.pdmodel": (b"<!DOCTYPE html><html>", "web page"),
    "config.yaml": (b"Global: {}", "is a configuration"),
    "model.tflite": (bytes(40), "TensorFlow Lite"),
    "model.pb": (bytes(40), "TensorFlow graph"),
    "model.nb": (bytes(40), "Paddle Lite"),
    "model.safetensors": (bytes(40), "weights without a network"),
    "inference.pdiparams": (bytes(40), "parameters alone"),
    "labels.txt": (b"cat\ndog\n", "text file"),
    "model.xml": (b"<?xml version", "OpenVINO"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path: Path, name: str) -> None:
    content, what = WRONG[name]
    (tmp_path / name).write_bytes(content)
    assert what in said(tmp_path / name)


# ---- operators -----------------------------------------------------------------------------------------------------

LEGACY = {
    "unheard_of": "has no translation", "lstm": "is recurrent", "rnn": "is recurrent", "gru": "is recurrent",
    "flash_attn": "is an attention kernel of GPUs", "one_hot_v2": "has no translation",
    "while": "is control flow", "conditional_block": "is control flow",
    "fake_quantize_range_abs_max": "is a quantizer of a form that is not read: the model is quantized already",
    "fake_channel_wise_quantize_abs_max": "is a quantizer of a form that is not read: the model is quantized already",
}  # fmt: skip


@pytest.mark.parametrize("kind", LEGACY)
def test_legacy_operators(tmp_path: Path, kind: str) -> None:
    block = {"sub_block": {"block": 1}} if LEGACY[kind] == "is control flow" else {}
    path = write_program(tmp_path, unary(kind, **block)) / "model.pdmodel"
    message = said(path)
    assert f"operator {kind!r} (output 'y') {LEGACY[kind]}" in message


def test_all_unknown_operators_at_once(tmp_path: Path) -> None:
    calls: list[Call] = [
        ("odd", {"X": ["x"]}, {"Out": ["a"]}, {}), ("lstm", {"X": ["a"]}, {"Out": ["b"]}, {}),
        ("relu", {"X": ["b"]}, {"Out": ["c"]}, {}), ("odd", {"X": ["c"]}, {"Out": ["d"]}, {}),
        ("while", {"X": ["d"]}, {"Out": ["y"]}, {"sub_block": {"block": 1}}),
    ]  # fmt: skip
    message = said(write_program(tmp_path, calls) / "model.pdmodel")
    assert "4 operators of 3 types cannot be read" in message
    assert "'odd' (2 times, first output 'a')" in message
    assert "'lstm' (output 'b', recurrent)" in message
    assert "'while' (output 'y', control flow)" in message


def onnx_model(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    return path


def branch() -> onnx.GraphProto:
    return helper.make_graph([], "b", [], [])


ONNX = {
    "If": ({"then_branch": branch(), "else_branch": branch()}, "", "is control flow"),
    "Loop": ({"body": branch()}, "", "is control flow"),
    "Scan": ({"body": branch(), "num_scan_inputs": 1}, "", "is control flow"),
    "SplitToSequence": ({}, "", "makes or reads a sequence of tensors"),
    "ConcatFromSequence": ({"axis": 1}, "", "makes or reads a sequence of tensors"),
    "OptionalGetElement": ({}, "", "makes or reads a sequence of tensors"),
    "LSTM": ({"hidden_size": 3}, "", "is recurrent"),
    "GRU": ({"hidden_size": 3}, "", "is recurrent"),
    "RNN": ({"hidden_size": 3}, "", "is recurrent"),
    "FusedConv": ({}, "com.microsoft", "is no operator of the ONNX standard"),
    "QLinearAdd": ({}, "com.microsoft", "is a quantizer of a form that is not read: the model is quantized already"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONNX)
def test_onnx_operators(tmp_path: Path, kind: str) -> None:
    attributes, domain, why = ONNX[kind]
    path = onnx_model(tmp_path, [helper.make_node(kind, ["x"], ["y"], domain=domain, **attributes)])
    message = said(path)
    assert kind in message
    assert f"(output 'y') {why}" in message


# ---- precision and parameters --------------------------------------------------------------------------------------


def test_float16(tmp_path: Path) -> None:
    assert "parameter 'w' is float16" in said(write_program(tmp_path, SCALED, {"w": W.astype("f2")}) / "model.pdmodel")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    write_program(tmp_path, SCALED, {"w": np.array([1, np.nan, np.nan], np.float32)})
    message = said(tmp_path / "model.pdiparams", read=tmp_path)
    assert "2 of 3 values of parameter 'w' are NaN" in message
    path = onnx_model(
        tmp_path, [helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.full((1, 3, 1, 1), np.nan, np.float32)}
    )
    assert "3 of 3 values of parameter 'w' are NaN" in said(path)


def test_infinity_is_a_number(tmp_path: Path) -> None:
    read_model(write_program(tmp_path, SCALED, {"w": np.array([1, -np.inf, 3], np.float32)}))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"", "cut": lambda content: content[:-3], "header": lambda content: content[:9],
    "longer": lambda content: content + b"1234", "version": lambda content: b"\x07" + content[1:],
    "lod": lambda content: content[:4] + b"\xff" * 8 + content[12:],
    "description": lambda content: content[:16] + b"\xff\xff\xff\x7f" + content[20:],
    "terabytes": lambda content: content.replace(b"\x10\x03", b"\x10\xff\xff\xff\xff\xff\x3f").replace(
        b"\x04\x00\x00\x00\x08", b"\x09\x00\x00\x00\x08"
    ),
    "page": lambda content: b"<!DOCTYPE html>", "pointer": lambda content: b"version https://git-lfs.github.com",
}  # fmt: skip


@pytest.mark.parametrize("form", ["combined", "separate"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_parameters(tmp_path: Path, damage: str, form: str) -> None:
    write_program(tmp_path, SCALED, {"w": W})
    params = tmp_path / "model.pdiparams"
    if form == "separate":
        (tmp_path / "model.pdmodel").rename(tmp_path / "__model__")
        params = params.rename(tmp_path / "w")
    content = params.read_bytes()
    params.write_bytes(DAMAGED[damage](content))
    assert params.read_bytes() != content
    with pytest.raises(ModelError) as caught:
        read_model(tmp_path)
    assert str(params) in str(caught.value)
    assert ";" in str(caught.value)


# ---- whatever the bytes are ----------------------------------------------------------------------------------------


def sample(folder: Path, form: str) -> tuple[Path, Path]:
    """(the folder of a small model, the file that is damaged)."""
    if form == "onnx":
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
        return folder, onnx_model(folder, nodes, {"w": np.ones((2, 3, 3, 3), np.float32)})
    if form == "pir":
        tensor = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [-1, 3, 6, 8], "NCHW", [], 0]}
        name = {"N": "name", "AT": {"#": "0.a_str", "D": "x"}}
        ops = [
            {"#": "1.data", "A": [name], "I": [], "O": [{"%": 1, "TT": tensor}]},
            {"#": "1.relu", "A": [], "I": [{"%": 1}], "O": [{"%": 2, "TT": tensor}]},
            {"#": "1.fetch", "A": [{"N": "col", "AT": {"#": "0.a_i32", "D": 0}}], "I": [{"%": 2}], "O": [{"%": 3}]},
        ]
        block = {"#": "block_0", "args": [], "ops": ops}
        document = {
            "base_code": {"magic": "pir", "version": 1}, "program": {"regions": [{"#": "region_0", "blocks": [block]}]}
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(document))
        return folder, folder / "model.json"
    write_program(folder, SCALED, {"w": W})
    return folder, folder / ("model.pdmodel" if form == "program" else "model.pdiparams")


@pytest.mark.parametrize("form", ["onnx", "pir", "program", "params"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=10_000)
@given(
    cut=st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
def test_damage_gives_our_errors_alone(
    tmp_path: Path, form: str, cut: float | None, flips: list[tuple[float, int]]
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    folder, path = sample(tmp_path, form)
    content = bytearray(path.read_bytes())
    for position, byte in flips:
        content[int(len(content) * position)] = byte
    path.write_bytes(bytes(content if cut is None else content[: int(len(content) * cut)]))
    with contextlib.suppress(FullquantError):
        read_model(folder)
