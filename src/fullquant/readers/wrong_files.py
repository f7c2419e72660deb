"""Files that are given in place of a model, by their first bytes or their ending, and what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from fullquant.errors import ModelError
from fullquant.formats.framework_pb2 import ProgramDesc

WANTED = "give the model's folder, or a .pdmodel, __model__, Paddle 3 .json or .onnx file"

_LFS = "is a pointer of Git LFS, not the file itself; fetch the file (git lfs pull)"
_PAGE = "is a web page, so the download went wrong; download the file itself again"
_IMAGE = "is an image, not a model; " + WANTED
# (first bytes, what to say)
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n", _IMAGE),
    (b"\xff\xd8\xff", _IMAGE),
    (b"GIF8", _IMAGE),
    (b"BM", _IMAGE),
    (b"RIFF", _IMAGE),
    (b"\x89HDF", "is a Keras or HDF5 file; convert it with tf2onnx (python -m tf2onnx.convert) and give the .onnx"),
    (b"PK\x03\x04", "is a zip archive (PyTorch's .pt and .pth are too); unpack it, or export the network with "
                    "torch.onnx.export and give the .onnx"),
    (b"\x80\x02", "is a Python pickle, such as weights of PyTorch or Paddle (.pdparams); export the network "
                  "(torch.onnx.export, paddle.jit.save) and give what it writes"),
    (b"\x80\x04", "is a Python pickle, such as weights of PyTorch or Paddle (.pdparams); export the network "
                  "(torch.onnx.export, paddle.jit.save) and give what it writes"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give the folder"),
    (b"BZh", "is a bzip2 archive; unpack it and give the folder"),
    (b"version https://", _LFS),
    (b"<!DOCTYPE", _PAGE),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"%PDF", "is a PDF document; " + WANTED),
)  # fmt: skip
_ENDINGS: dict[str, str] = {
    ".pdiparams": "holds parameters alone; give the folder, or the program beside it (.pdmodel or .json)",
    ".pdparams": "holds weights without a network; export the model with paddle.jit.save and give what it writes",
    ".pdopt": "holds the state of an optimizer; export the model with paddle.jit.save and give what it writes",
    ".tflite": "is a TensorFlow Lite model; export the network to ONNX (tf2onnx) and give the .onnx",
    ".pb": "is a TensorFlow graph; convert it with tf2onnx (python -m tf2onnx.convert) and give the .onnx",
    ".nb": "is a Paddle Lite file, made from a model; give the Paddle or ONNX model that it was made from",
    ".yaml": "is a configuration; give the model, and the configuration with --config",
    ".yml": "is a configuration; give the model, and the configuration with --config",
    ".tar": "is a tar archive; unpack it and give the folder",
    ".txt": "is a text file; " + WANTED,
    ".bin": "holds data, not a network; " + WANTED,
    ".data": "holds external data of an .onnx file; give the .onnx",
    ".safetensors": "holds weights without a network; export the network with torch.onnx.export and give the .onnx",
    ".xml": "is a model of OpenVINO; give the Paddle or ONNX model that it was made from",
}


def refuse_wrong_file(path: Path, *, parameters: bool = False) -> None:
    """Raises ModelError where a file, by its first bytes or its ending, is something else than a model.

    parameters: the file is read as one of parameters; only what cannot be one is refused.
    """
    try:
        with path.open("rb") as stream:
            begin = stream.read(16)
    except OSError:
        return  # whoever reads it says why it cannot be read
    for signature, what in _SIGNATURES:
        if begin.startswith(signature) and (not parameters or len(signature) > 2):
            raise ModelError(f"{path}: {what}")
    said = _ENDINGS.get(path.suffix.lower())
    if said is not None and not parameters:
        raise ModelError(f"{path}: {said}")


def refuse_misnamed(path: Path) -> None:
    """Raises ModelError where a file that could not be read by its name is a model of another format by its content."""
    content = path.read_bytes()
    own = {".onnx": "ONNX", ".json": "PIR"}.get(path.suffix, "Paddle")
    found = [(kind, name) for kind, name, holds in _FORMATS if kind != own and holds(content)]
    if found:
        kind, name = found[0]
        raise ModelError(
            f"{path}: is {name} by its content, not what its name says; rename it to {path.stem}{_NAMED[kind]}"
        )


def _is_onnx(content: bytes) -> bool:
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError:
        return False
    return bool(proto.graph.node and proto.opset_import)


def _is_program(content: bytes) -> bool:
    try:
        program = ProgramDesc.FromString(content)
    except DecodeError:
        return False
    return bool(program.blocks and program.blocks[0].ops)


_NAMED = {"ONNX": ".onnx", "PIR": ".json", "Paddle": ".pdmodel"}
# (format, what it is called, whether bytes are of it)
_FORMATS: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
    ("PIR", "a Paddle 3 program (JSON)", lambda content: content.lstrip()[:1] == b"{" and b'"base_code"' in content),
    ("ONNX", "an ONNX model", _is_onnx),
    ("Paddle", "a Paddle program (.pdmodel)", _is_program),
)
