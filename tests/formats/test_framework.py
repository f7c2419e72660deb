"""The schema of the program format, against the one that PaddlePaddle registers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from fullquant.formats import framework_pb2


def _fields(descriptor: descriptor_pb2.DescriptorProto, prefix: str = "") -> dict[str, tuple[object, ...]]:
    """Full name -> number, label, type, type name and default of every field; enum values as name -> number."""
    name = f"{prefix}{descriptor.name}"
    found: dict[str, tuple[object, ...]] = {
        f"{name}.{f.name}": (f.number, f.label, f.type, f.type_name.rpartition(".")[2], f.default_value)
        for f in descriptor.field
    }
    found |= {f"{name}.{e.name}.{v.name}": (v.number,) for e in descriptor.enum_type for v in e.value}
    for nested in descriptor.nested_type:
        found |= _fields(nested, f"{name}.")
    return found


def _schema(file: descriptor_pb2.FileDescriptorProto) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {f"{e.name}.{v.name}": (v.number,) for e in file.enum_type for v in e.value}
    for message in file.message_type:
        found |= _fields(message)
    return found


def test_schema_equals_that_of_paddle() -> None:
    spec = importlib.util.find_spec("paddle")
    if spec is None or spec.origin is None:
        pytest.skip("PaddlePaddle is not installed")
    module = Path(spec.origin).parent / "base" / "proto" / "framework_pb2.py"
    # in a process of its own: the module alone, without the rest of the package
    script = (
        "import runpy, sys; from google.protobuf import descriptor_pb2;"
        "file = descriptor_pb2.FileDescriptorProto();"
        "runpy.run_path(sys.argv[1])['DESCRIPTOR'].CopyToProto(file);"
        "sys.stdout.buffer.write(file.SerializeToString())"
    )
    output = subprocess.run([sys.executable, "-c", script, str(module)], check=True, capture_output=True).stdout
    theirs = _schema(descriptor_pb2.FileDescriptorProto.FromString(output))
    # OpProto documents operators inside the framework and is in no file
    theirs = {name: field for name, field in theirs.items() if not name.startswith("OpProto")}
    ours = descriptor_pb2.FileDescriptorProto()
    framework_pb2.DESCRIPTOR.CopyToProto(ours)
    assert _schema(ours) == theirs


def test_names_do_not_collide_with_those_of_paddle() -> None:
    assert framework_pb2.DESCRIPTOR.package == "fullquant.paddle_program"
    assert framework_pb2.DESCRIPTOR.name == "fullquant/formats/framework.proto"


def test_program_survives_a_round_trip_byte_for_byte(ocr_model_dir: Path) -> None:
    content = (ocr_model_dir / "inference.pdmodel").read_bytes()
    program = framework_pb2.ProgramDesc.FromString(content)
    assert len(program.blocks[0].ops) > 100
    assert framework_pb2.ProgramDesc.FromString(program.SerializeToString()) == program
    assert len(program.SerializeToString()) == len(content)
