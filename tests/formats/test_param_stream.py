"""The parameter stream: what is written is read back, Paddle reads it too, and damage never passes unnoticed."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fullquant.errors import ExportError, ModelError
from fullquant.formats.framework_pb2 import VarType
from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.formats.param_stream import (
    read_combined,
    read_separate,
    read_single,
    write_combined,
    write_separate,
)

DTYPES = (np.float32, np.int8, np.int32, np.int64, np.uint8, np.float16, np.float64, np.bool_)
FILES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

tensors = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
named = st.dictionaries(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), tensors, max_size=4)


def _stream(content: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    write_combined(stream, content)
    return stream.getvalue()


def _assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert actual[name].shape == array.shape
        assert actual[name].tobytes() == array.tobytes()


@FILES
@given(content=named)
def test_combined_round_trip(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    path = tmp_path / "params"
    path.write_bytes(_stream(content))
    _assert_same(read_combined(path, reversed(list(content))), content)


def test_separate_round_trip(tmp_path: Path) -> None:
    content = {"a.w_0": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, dtype=np.int64)}
    paths = write_separate(tmp_path, content)
    assert [path.name for path in paths] == list(content)
    _assert_same(read_separate(tmp_path, content), content)


def test_order_is_that_of_the_sorted_names(tmp_path: Path) -> None:
    content = {name: np.full(3, index, np.int32) for index, name in enumerate(["b", "a_10", "a_2", "B"])}
    stream = io.BytesIO()
    assert write_combined(stream, content) == ["B", "a_10", "a_2", "b"]
    first = read_single(_written(tmp_path, stream.getvalue()[: len(stream.getvalue()) // 4]), "B")
    np.testing.assert_array_equal(first, content["B"])


def test_array_that_is_not_contiguous(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(read_single(_written(tmp_path, _stream({"w": array})), "w"), array)


def test_bfloat16(tmp_path: Path) -> None:
    array = np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)
    assert read_single(_written(tmp_path, _stream({"w": array})), "w").dtype == ml_dtypes.bfloat16


def test_lod_levels_are_skipped(tmp_path: Path) -> None:
    plain = _stream({"w": np.arange(3, dtype=np.float32)})
    level = struct.pack("<QQQ", 16, 0, 3)
    with_lod = struct.pack("<IQ", 0, 1) + level + plain[12:]
    np.testing.assert_array_equal(read_single(_written(tmp_path, with_lod), "w"), np.arange(3, dtype=np.float32))


def test_foreign_type_is_refused() -> None:
    with pytest.raises(ExportError, match=r"'w'.*complex64"):
        write_combined(io.BytesIO(), {"w": np.zeros(2, np.complex64)})


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "params"
    path.write_bytes(content)
    return path


SMALL = {"first": np.arange(6, dtype=np.float32).reshape(2, 3), "second": np.arange(4, dtype=np.int8)}


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = _stream(SMALL)
    for length in range(len(whole)):
        path = _written(tmp_path, whole[:length])
        with pytest.raises(ModelError, match=r"params: .* at byte \d+ \(variable '(first|second)'\)"):
            read_combined(path, SMALL)
    _assert_same(read_combined(_written(tmp_path, whole), SMALL), SMALL)


def test_surplus_bytes_are_an_error(tmp_path: Path) -> None:
    path = _written(tmp_path, _stream(SMALL) + b"\0")
    with pytest.raises(ModelError, match="1 bytes follow the last of 2 parameters"):
        read_combined(path, SMALL)
    with pytest.raises(ModelError, match="bytes follow"):
        read_single(path, "first")


@FILES
@given(content=named, cut=st.floats(0, 1, exclude_max=True))
def test_truncation_of_any_stream(tmp_path: Path, content: dict[str, np.ndarray], cut: float) -> None:
    whole = _stream(content)
    if whole:
        with pytest.raises(ModelError):
            read_combined(_written(tmp_path, whole[: int(len(whole) * cut)]), content)


@FILES
@given(position=st.integers(0, len(_stream(SMALL)) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_gives_an_error_or_tensors_of_the_same_size(tmp_path: Path, position: int, byte: int) -> None:
    """No length in the file can make the reader leave the file or allocate without bound."""
    damaged = bytearray(_stream(SMALL))
    damaged[position] = byte
    read: dict[str, np.ndarray] = {}
    with contextlib.suppress(ModelError):
        read = read_combined(_written(tmp_path, bytes(damaged)), SMALL)
    assert sum(array.nbytes for array in read.values()) <= len(damaged)


@FILES
@given(noise=st.binary(max_size=200))
def test_noise_is_an_error(tmp_path: Path, noise: bytes) -> None:
    with pytest.raises(ModelError):
        read_combined(_written(tmp_path, noise), ["a", "b"])


@pytest.mark.parametrize(
    ("dims", "data_type", "said"),
    [
        ([-1, 3], VarType.FP32, "negative size"),
        ([1 << 40, 1 << 40], VarType.FP32, "bytes, 0 are left"),
        ([0, 1 << 62, 1 << 62], VarType.FP32, "cannot be held"),
        ([1] * 80, VarType.UINT8, "bytes, 0 are left"),
        ([0] * 80, VarType.UINT8, "cannot be held"),
        ([2], VarType.STRING, "element type 25"),
    ],
)
def test_impossible_descriptions(tmp_path: Path, dims: list[int], data_type: VarType.Type, said: str) -> None:
    desc = VarType.TensorDesc(data_type=data_type, dims=dims).SerializeToString()
    path = _written(tmp_path, struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc)
    with pytest.raises(ModelError, match=said):
        read_single(path, "w")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<IQIi", 7, 0, 0, 0), "the variable's format version is 7"),
        (struct.pack("<IQIi", 0, 0, 9, 0), "the tensor's format version is 9"),
        (struct.pack("<IQIi", 0, 1 << 60, 0, 0), "a LoD level"),
        (struct.pack("<IQIi", 0, 0, 0, -5), "the tensor description needs -5 bytes"),
        (struct.pack("<IQIi", 0, 0, 0, 2) + b"\xff\xff", "cannot be decoded"),
        (struct.pack("<IQIi", 0, 0, 0, 0), "cannot be decoded"),
    ],
)
def test_impossible_headers(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_single(_written(tmp_path, content), "w")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_combined(tmp_path / "nothing", ["a"])


def test_paddle_reads_what_is_written(tmp_path: Path) -> None:
    """One file per parameter, loaded by Paddle's `load` operator in a process of its own."""
    pytest.importorskip("paddle", reason="PaddlePaddle is not installed")
    rng = np.random.default_rng(0)
    content = {
        f"tensor_{dtype.__name__}": rng.integers(0, 2, (2, 3)).astype(dtype)
        for dtype in (np.float32, np.int8, np.int32, np.int64, np.float64)
    }
    write_separate(tmp_path, content)
    script = """
import sys, numpy as np, paddle
paddle.enable_static()
program = paddle.static.Program()
with paddle.static.program_guard(program):
    block = program.global_block()
    for name in sys.argv[2:]:
        var = block.create_var(name=name, persistable=True, dtype=name.removeprefix("tensor_"))
        block.append_op(type="load", inputs={}, outputs={"Out": [var]}, attrs={"file_path": sys.argv[1] + "/" + name})
scope = paddle.static.Scope()
with paddle.static.scope_guard(scope):
    paddle.static.Executor(paddle.CPUPlace()).run(program)
    np.savez(sys.argv[1] + "/out.npz", **{n: np.array(scope.find_var(n).get_tensor()) for n in sys.argv[2:]})
"""
    command = [sys.executable, "-c", script, str(tmp_path), *content]
    result = subprocess.run(
        command, env={**os.environ, "FLAGS_enable_pir_api": "0"}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as data:
        _assert_same(dict(data), content)


def test_each_element_type_has_one_number() -> None:
    assert len(set(NUMBER_OF_DTYPE.values())) == len(NUMBER_OF_DTYPE)
