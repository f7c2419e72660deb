"""Files that are no models, and damaged parameters: one line that names the file and the remedy. See test_broken.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fullquant.errors import ModelError
from fullquant.readers import read_model
from tests.readers.programs import Call, write_program

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


# ---- parameters -----------------------------------------------------------------------------------------------------


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
