"""Errors about a whole program, in both formats; attribute kinds; variables that are written twice."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fullquant.errors import ModelError, UnsupportedOperatorError
from fullquant.formats.framework_pb2 import AttrType, OpDesc, ProgramDesc, Scalar
from fullquant.readers import read_model
from fullquant.readers.program import VariableRef
from fullquant.readers.program_desc import load_program
from tests.readers.onnx_run import run
from tests.readers.programs import Call, unary, write_program

X = np.random.default_rng(0).uniform(-3, 3, (2, 3, 6, 8)).astype(np.float32)
SCALED: list[Call] = [("elementwise_mul", {"X": ["x"], "Y": ["w"]}, {"Out": ["y"]}, {"axis": 1})]
W = np.array([1, 2, 3], np.float32)


def _error(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_program(tmp_path: Path) -> None:
    model = read_model(write_program(tmp_path, SCALED, {"w": W}))
    np.testing.assert_allclose(run(model, X), X * W[:, None, None])
    assert model.metadata_props["fullquant.params_file"] == str(tmp_path / "model.pdiparams")


def test_several_inputs_or_outputs(tmp_path: Path) -> None:
    calls: list[Call] = [("elementwise_add", {"X": ["x"], "Y": ["z"]}, {"Out": ["y"]}, {})]
    assert "2 inputs ('x', 'z')" in _error(write_program(tmp_path, calls, inputs=("x", "z")))
    sizes = {"y": (-1, 3, 6, 8), "s": (-1, 3, 6, 8)}
    calls = [*unary("relu"), ("lstm", {"X": ["x"], "Y": ["z"]}, {"Out": ["s"]}, {})]
    several = write_program(tmp_path, calls, inputs=("x", "z"), outputs=("y", "s"), variables=sizes)
    assert "2 outputs ('y' [-1, 3, 6, 8], 's' [-1, 3, 6, 8]), one is quantized: say which with" in _error(several)
    assert "'t', the model has 'y' [-1, 3, 6, 8], 's'" in _error(several, output_name="t")
    assert "is recurrent" in _error(several, output_name="s")
    model = read_model(several, output_name="y")
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert "0 outputs (none)" in _error(write_program(tmp_path, unary("relu"), outputs=()))


def test_control_flow(tmp_path: Path) -> None:
    write_program(tmp_path, unary("conditional_block", sub_block={"block": 1}))
    with pytest.raises(UnsupportedOperatorError, match=r"'conditional_block' \(output 'y'\) is control flow"):
        read_model(tmp_path)


def test_missing_parameter_file(tmp_path: Path) -> None:
    write_program(tmp_path, SCALED, {"w": W})
    (tmp_path / "model.pdiparams").unlink()
    assert "no parameters for model.pdmodel; looked for model.pdiparams" in _error(tmp_path)


def test_missing_parameter_among_separate_files(tmp_path: Path) -> None:
    write_program(tmp_path, SCALED, {"w": W})
    (tmp_path / "model.pdmodel").rename(tmp_path / "__model__")
    (tmp_path / "model.pdiparams").unlink()
    assert "no file for parameter 'w' (1 of 1 are missing)" in _error(tmp_path)


def test_parameters_of_another_model(tmp_path: Path) -> None:
    write_program(tmp_path, SCALED, {"w": W})
    program = (tmp_path / "model.pdmodel").read_bytes()
    write_program(tmp_path, SCALED, {"w": np.ones(5, np.float32)})
    (tmp_path / "model.pdmodel").write_bytes(program)
    assert "parameter 'w' has shape [5], the program declares [3]" in _error(tmp_path)
    write_program(tmp_path, SCALED, {"w": W.astype(np.int64)})
    (tmp_path / "model.pdmodel").write_bytes(program)
    assert "parameter 'w' holds int64, the program declares float32" in _error(tmp_path)


def test_input_shape(tmp_path: Path) -> None:
    write_program(tmp_path, unary("relu"), input_shape=(-1, 3, -1, -1))
    assert str(read_model(tmp_path).graph.outputs[0].shape) == "[N,3,H,W]"
    model = read_model(tmp_path, input_shape={"x": (1, 3, 6, -1)})
    assert str(model.graph.outputs[0].shape) == "[1,3,6,W]"
    assert "input_shape names 'image', the model's input is 'x'" in _error(tmp_path, input_shape={"image": [1]})
    assert "single number" in _error(write_program(tmp_path, unary("relu"), input_shape=()))
    write_program(tmp_path, unary("relu"), input_shape=(-1, 3, -1, -1))
    assert "has 2 sizes" in _error(tmp_path, input_shape={"x": [1, 3]})


def test_damaged_program_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pdmodel"
    path.write_bytes(b"\xff" * 30)
    assert "is not a Paddle program" in _error(tmp_path)
    path.write_bytes(b"")
    assert "no operators" in _error(tmp_path)
    whole = (write_program(tmp_path, unary("relu")) / "model.pdmodel").read_bytes()
    path.write_bytes(whole.replace(b"\x0a\x01x", b"\x0a\x01\xff"))
    assert "is not UTF-8" in _error(tmp_path)
    path.write_bytes(whole.replace(b"\x0a\x01X", b"\x0a\x01Z"))
    assert "malformed (KeyError('X'))" in _error(tmp_path)
    path.write_bytes(b"\x0a\x02\x08\x01")  # a block without parent_idx
    assert "a required field is missing" in _error(tmp_path)


PROGRAM = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@PROGRAM
@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_programs(tmp_path: Path, cut: float) -> None:
    """An error, or (where only the version at the end is lost) the same program."""
    whole = (write_program(tmp_path, SCALED, {"w": W}) / "model.pdmodel").read_bytes()
    length = int(len(whole) * cut)
    (tmp_path / "model.pdmodel").write_bytes(whole[:length])
    if ProgramDesc.FromString(whole).ByteSize() - length > 8:
        with pytest.raises(ModelError):
            read_model(tmp_path)


@PROGRAM
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_never_gives_another_kind_of_error(tmp_path: Path, position: float, byte: int) -> None:
    content = bytearray((write_program(tmp_path, SCALED, {"w": W}) / "model.pdmodel").read_bytes())
    content[int(len(content) * position)] = byte
    (tmp_path / "model.pdmodel").write_bytes(bytes(content))
    with contextlib.suppress(ModelError):
        read_model(tmp_path)


def test_variables_that_are_written_twice(tmp_path: Path) -> None:
    calls: list[Call] = [
        ("scale", {"X": ["x"]}, {"Out": ["t"]}, {"scale": 2.0}),
        ("relu", {"X": ["t"]}, {"Out": ["t"]}, {}),
        ("fill_constant", {}, {"Out": ["c"]}, {"shape": [1], "dtype": 5, "value": 1.0}),
        ("elementwise_add", {"X": ["t"], "Y": ["c"]}, {"Out": ["t"]}, {}),
        ("fill_constant", {}, {"Out": ["c"]}, {"shape": [1], "dtype": 5, "value": 3.0}),
        ("elementwise_mul", {"X": ["t"], "Y": ["c"]}, {"Out": ["y"]}, {}),
    ]
    model = read_model(write_program(tmp_path, calls))
    np.testing.assert_allclose(run(model, X), (np.maximum(X * 2, 0) + 1) * 3, rtol=1e-6)
    names = [str(value.name) for node in model.graph for value in node.outputs]
    assert names == ["t", "t@2", "t@3", "y"]
    assert [node.name for node in model.graph] == ["scale_0", "relu_0", "elementwise_add_0", "elementwise_mul_0"]


def test_a_value_with_two_names(tmp_path: Path) -> None:
    calls: list[Call] = [
        ("relu", {"X": ["x"]}, {"Out": ["a"]}, {}),
        ("dropout", {"X": ["a"]}, {"Out": ["y"]}, {"is_test": True, "dropout_implementation": "upscale_in_train"}),
    ]
    model = read_model(write_program(tmp_path, calls))
    assert [node.op_type for node in model.graph] == ["Relu", "Identity"]
    assert model.graph.outputs[0].name == "y"


def test_every_kind_of_attribute(tmp_path: Path) -> None:
    write_program(tmp_path, unary("relu"))
    path = tmp_path / "model.pdmodel"
    program = ProgramDesc.FromString(path.read_bytes())
    op = program.blocks[0].ops[1]
    scalar = Scalar(type=Scalar.FLOAT64, r=0.5)
    made = {
        "long": OpDesc.Attr(type=AttrType.LONG, l=1 << 40),
        "longs": OpDesc.Attr(type=AttrType.LONGS, longs=[1, 2]),
        "float64": OpDesc.Attr(type=AttrType.FLOAT64, float64=0.1),
        "float64s": OpDesc.Attr(type=AttrType.FLOAT64S, float64s=[0.1]),
        "bools": OpDesc.Attr(type=AttrType.BOOLEANS, bools=[True, False]),
        "strings": OpDesc.Attr(type=AttrType.STRINGS, strings=["a"]),
        "var": OpDesc.Attr(type=AttrType.VAR, var_name="v"),
        "vars": OpDesc.Attr(type=AttrType.VARS, vars_name=["v", "w"]),
        "scalar": OpDesc.Attr(type=AttrType.SCALAR, scalar=scalar),
        "scalars": OpDesc.Attr(type=AttrType.SCALARS, scalars=[Scalar(type=Scalar.LONG, i=3)]),
    }
    for name, attr in made.items():
        attr.name = name
        op.attrs.append(attr)
    path.write_bytes(program.SerializeToString())
    assert load_program(path).ops[0].attrs == {
        "long": 1 << 40,
        "longs": [1, 2],
        "float64": 0.1,
        "float64s": [0.1],
        "bools": [True, False],
        "strings": ["a"],
        "var": VariableRef("v"),
        "vars": [VariableRef("v"), VariableRef("w")],
        "scalar": 0.5,
        "scalars": [3],
    }


def test_an_attribute_held_by_a_variable(tmp_path: Path) -> None:
    calls: list[Call] = [
        ("fill_constant", {}, {"Out": ["axis"]}, {"shape": [1], "dtype": 2, "value": 1.0}),
        ("softmax", {"X": ["x"]}, {"Out": ["y"]}, {"axis": 3}),
    ]
    path = write_program(tmp_path, calls) / "model.pdmodel"
    program = ProgramDesc.FromString(path.read_bytes())
    attr = program.blocks[0].ops[2].attrs[0]
    attr.Clear()
    attr.name, attr.type, attr.var_name = "axis", AttrType.VAR, "axis"
    path.write_bytes(program.SerializeToString())
    (softmax,) = read_model(tmp_path).graph
    assert softmax.attributes["axis"].value == 1
    attr.var_name = "x"
    path.write_bytes(program.SerializeToString())
    assert "attribute 'axis' is computed by the model (variable 'x')" in _error(tmp_path)


# -- PIR ----------------------------------------------------------------------------------------------------------

TENSOR = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [-1, 3, 6, 8], "NCHW", [], 0]}


def _pir(folder: Path, *ops: dict[str, Any]) -> Path:
    data = {"#": "1.data", "A": [{"N": "name", "AT": {"#": "0.a_str", "D": "x"}}], "I": [], "O": [_result(1)]}
    fetch = {"#": "1.fetch", "A": [{"N": "col", "AT": {"#": "0.a_i32", "D": 0}}], "I": [{"%": 2}], "O": [_result(9)]}
    block = {"#": "block_0", "args": [], "ops": [data, *ops, fetch]}
    regions = [{"#": "region_0", "blocks": [block]}]
    document = {"base_code": {"magic": "pir", "version": 1}, "program": {"regions": regions}}
    (folder / "model.json").write_text(json.dumps(document))
    return folder


def _result(number: int) -> dict[str, Any]:
    return {"%": number, "TT": TENSOR}


def test_pir_program(tmp_path: Path) -> None:
    scope = {"N": "struct_name", "AT": {"#": "0.a_str", "D": "/Net/ReLU/"}}
    model = read_model(_pir(tmp_path, {"#": "1.relu_", "A": [scope], "I": [{"%": 1}], "O": [_result(2)]}))
    np.testing.assert_array_equal(run(model, X), np.maximum(X, 0))
    (relu,) = model.graph
    assert relu.name == "relu_0"
    assert relu.metadata_props["fullquant.namescope"] == "/Net/ReLU/"
    assert model.metadata_props["fullquant.source_format"] == "pir"


@pytest.mark.parametrize(
    ("op", "said"),
    [
        (
            {"#": "1.lstm", "A": [], "I": [{"%": 1}], "O": [_result(2)]},
            r"'pd_op.lstm' \(output %2\) is recurrent",
        ),
        ({"#": "1.if", "A": [], "I": [], "O": [_result(2)], "regions": [{}]}, "control flow"),
        ({"#": "1.relu", "A": [], "I": [{"%": 7}], "O": [_result(2)]}, "value 7, which nothing writes"),
        ({"#": "0.slice", "A": [], "I": [{"%": 1}], "O": [_result(8)]}, "value 2, which nothing writes"),
        ({"#": "0.split", "A": [], "I": [{"%": 1}], "O": [_result(2), _result(3)]}, "malformed"),
    ],
)
def test_pir_errors(tmp_path: Path, op: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_model(_pir(tmp_path, op))
    assert "\n" not in str(caught.value)
