"""Access to PIR programs: attributes, types, and documents that are something else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fullquant.errors import ModelError
from fullquant.formats.pir_json import load_pir

TENSOR = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [-1, 3], "NCHW", [], 0]}
PARAMETER = {"#": "p", "A": [0, 1, 1, "fc.w_0"], "DA": [], "O": {"%": 1, "TT": TENSOR}, "OA": [1, 0, 1], "QA": []}


def _attribute(kind: str, content: Any) -> dict[str, Any]:
    return {"N": "a", "AT": {"#": kind, "D": content}}


def _document(*ops: dict[str, Any], version: int = 4) -> dict[str, Any]:
    block = {"#": "block_0", "args": [], "ops": list(ops)}
    return {
        "base_code": {"magic": "pir", "trainable": True, "version": version},
        "program": {"regions": [{"#": "region_0", "blocks": [block]}]},
    }


def _written(folder: Path, document: Any) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(document))
    return path


def test_operation(tmp_path: Path) -> None:
    op = {
        "#": "1.matmul",
        "A": [{"N": "transpose_x", "AT": {"#": "0.a_bool", "D": False}}],
        "I": [{"%": 1}, {"%": 0}],
        "O": [{"%": 2, "TT": {"#": "0.t_vec", "D": [TENSOR, TENSOR]}}, {"%": 0, "TT": {"#": "NULL"}}],
        "QA": [{"N": "struct_name", "AT": {"#": "0.a_str", "D": "/Linear/"}}],
    }
    parameter, matmul = load_pir(_written(tmp_path, _document(PARAMETER, op))).ops
    assert parameter.parameter_name == "fc.w_0"
    assert parameter.results[0].type.dtype == np.float32
    assert parameter.results[0].type.dims == (-1, 3)
    assert matmul.name == "pd_op.matmul"
    assert matmul.operands == (1, 0)
    assert matmul.attributes == {"transpose_x": False, "struct_name": "/Linear/"}
    elements = matmul.results[0].type.elements
    assert elements is not None
    assert len(elements) == 2
    assert matmul.results[1].type.dtype is None


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("0.a_bool", True, True),
        ("0.a_i64", -5, -5),
        ("0.a_f32", 0.25, 0.25),
        ("0.a_f64", "inf", float("inf")),
        ("0.a_str", "SAME", "SAME"),
        ("0.a_array", [{"#": "0.a_i32", "D": 2}, {"#": "0.a_i32", "D": 3}], [2, 3]),
        ("1.a_intarray", [-1, 3], [-1, 3]),
        ("1.a_dtype", "int8", np.dtype(np.int8)),
        ("1.a_scalar", ["float32", 0.5], 0.5),
        ("1.a_scalar", ["int64", 7], 7),
        ("1.a_place", [0, 0, ""], None),
        ("9.a_unheard_of", {}, None),
    ],
)
def test_attributes(tmp_path: Path, kind: str, content: Any, expected: Any) -> None:
    op = {"#": "1.full", "A": [_attribute(kind, content)], "I": [], "O": []}
    assert load_pir(_written(tmp_path, _document(op))).ops[0].attributes["a"] == expected


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([1, 2], "not a Paddle 3 program"),
        ({"base_code": {"magic": "other"}}, "not a Paddle 3 program"),
        (_document(version=99), "PIR version 99"),
        ({"base_code": {"magic": "pir", "version": 1}}, "malformed"),
        ({"base_code": {"magic": "pir", "version": 1}, "program": {"regions": []}}, "malformed"),
        (_document({"#": "p"}), "malformed"),
        (_document({"I": []}), "malformed"),
        (_document({"#": "1.full", "A": [_attribute("0.a_i32", None)]}), "malformed"),
        (_document({"#": "1.full", "A": [_attribute("0.a_i64", 1 << 63)]}), "no 64-bit integer"),
    ],
)
def test_other_documents(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_pir(_written(tmp_path, document))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_pir(tmp_path / "nothing.json")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_pir(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, len(json.dumps(_document(PARAMETER))) - 1))
def test_every_truncation_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(_document(PARAMETER))[:cut])
    with pytest.raises(ModelError):
        load_pir(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("#%ADINOTT"), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(op=json_values)
def test_any_operation_is_read_or_is_an_error(tmp_path: Path, op: Any) -> None:
    with contextlib.suppress(ModelError):
        load_pir(_written(tmp_path, _document(op)))
