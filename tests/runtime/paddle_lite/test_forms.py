"""The interpreter's forms compute the file's numbers: in ONNX Runtime, read by our readers, and in Paddle Lite."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fullquant.errors import EngineError
from fullquant.formats.framework_pb2 import ProgramDesc
from fullquant.formats.param_stream import write_combined
from fullquant.runtime.paddle_lite.converter import VARIABLE
from fullquant.runtime.paddle_lite.forms import CONVOLUTIONS, interpreter_form
from fullquant.runtime.paddle_lite.source import is_quantized, read_source, source_layers
from fullquant.runtime.sessions import available_engines, open_session
from tests.paddle_lite_program import CONVERTER, Int8File, needs_paddle_lite, script


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Int8File:
    return Int8File(tmp_path_factory.mktemp("int8"))


def save(desc: ProgramDesc, parameters: dict, folder: Path) -> Path:
    (folder / "f.pdmodel").write_bytes(desc.SerializeToString())
    with (folder / "f.pdiparams").open("wb") as stream:
        write_combined(stream, parameters)
    return folder / "f.pdmodel"


def kinds(desc: ProgramDesc) -> list[str]:
    return [op.type for op in desc.blocks[0].ops]


@pytest.mark.parametrize("int8_layers", [False, True])
def test_the_same_numbers(file: Int8File, tmp_path, int8_layers: bool) -> None:
    desc, parameters = read_source(file.model, file.params)
    before = desc.SerializeToString()
    form, held = interpreter_form(desc, parameters, int8_layers=int8_layers)
    assert desc.SerializeToString() == before
    session = open_session(save(form, dict(held), tmp_path), "onnxruntime", optimize=False)
    x = file.x * 1.5  # clipping counts too
    np.testing.assert_allclose(session.run({"x": x})[0], file.expected(x), atol=1e-3 * file.step)


def test_what_stays_int8(file: Int8File) -> None:
    desc, parameters = read_source(file.model, file.params)
    plain, floats = interpreter_form(desc, parameters, int8_layers=False)
    assert not is_quantized(plain)
    assert not any(array.dtype == np.int8 for array in floats.values())
    assert not any(a.name == "out_threshold" for op in plain.blocks[0].ops for a in op.attrs)
    form, held = interpreter_form(desc, parameters, int8_layers=True)
    layers = source_layers(form, held)
    assert len(layers) == sum(kind in CONVOLUTIONS for kind in kinds(form)) == 5
    for name, layer in source_layers(desc, parameters).items():
        if name in layers:
            np.testing.assert_array_equal(layers[name].weight, layer.weight)
            assert layers[name].input_scale == layer.input_scale
    assert "matmul_v2" in kinds(form)  # whose int8 weights Lite would read with one scale


def test_the_older_form_is_refused() -> None:
    desc = ProgramDesc()
    desc.blocks.add(idx=0, parent_idx=-1).ops.add(type="fake_quantize_moving_average_abs_max")
    with pytest.raises(EngineError, match="onnx_format: true"):
        interpreter_form(desc, {}, int8_layers=False)


def test_a_quantizer_without_its_other_half(file: Int8File) -> None:
    desc, parameters = read_source(file.model, file.params)
    operators = desc.blocks[0].ops
    index = next(i for i, op in enumerate(operators) if op.type == "dequantize_linear" and i)
    quantizer = next(i for i, op in enumerate(operators) if op.type == "quantize_linear")
    index = next(i for i in range(quantizer, len(operators)) if operators[i].type == "dequantize_linear")
    del operators[index]
    with pytest.raises(EngineError, match="quantized but never dequantized"):
        interpreter_form(desc, parameters, int8_layers=False)


# --- the interpreter -------------------------------------------------------------------------------------------------


@pytest.fixture
def paddle_lite(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, str(CONVERTER))


@needs_paddle_lite
@pytest.mark.parametrize("optimize", [False, True])
def test_the_interpreter_computes_the_simulation(file: Int8File, paddle_lite, optimize: bool) -> None:
    assert "paddle_lite" in available_engines()
    session = open_session(file.model, "paddle_lite", optimize=optimize)
    x = np.random.default_rng(5).standard_normal((9, 3, 8, 8)).astype(np.float32)
    (actual,) = session.run({"x": x})
    expected = file.expected(x)
    assert actual.shape == expected.shape
    assert np.mean(np.abs(actual - expected) > 1e-3 * file.step) <= 0.02
    assert np.abs(actual - expected).max() <= 1.001 * file.step
    np.testing.assert_array_equal(session.run({"x": x[:1]})[0], actual[:1])
    with pytest.raises(EngineError, match=r"the input has the shape \[1, 4, 8, 8\]"):
        session.run({"x": np.zeros((1, 4, 8, 8), np.float32)})


@needs_paddle_lite
def test_int8_kernels_saturate_without_reduce_range(tmp_path, paddle_lite) -> None:
    """The cause of what differs at full range; if Lite's x86 kernels no longer add in 16 bits, the note has to go."""
    rng = np.random.default_rng(5)
    wide = Int8File(tmp_path, reduce_range=False)
    x = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    plain, fast = (open_session(wide.model, "paddle_lite", optimize=o).run({"x": x})[0] for o in (False, True))
    assert np.abs(plain - wide.expected(x)).max() <= 1.001 * wide.step
    assert np.abs(fast - plain).max() > 1.001 * wide.step


def test_without_the_package(file: Int8File, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, str(script(tmp_path / "opt", "")))
    assert "paddle_lite" not in available_engines()
    with pytest.raises(EngineError, match="needs the Python package paddlelite"):
        open_session(file.model, "paddle_lite")
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f"#!{sys.executable}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(wrapper))
    with pytest.raises(EngineError, match=r"refuses .*m.pdmodel: .*No module named 'paddlelite'"):
        open_session(file.model, "paddle_lite")
