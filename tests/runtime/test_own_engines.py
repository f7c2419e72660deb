"""Our own executors as engines of a quantized file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import EngineError
from fullquant.readers import read_model
from fullquant.runtime.integer import FloatNode, IntegerModel
from fullquant.runtime.own_engines import float_remark
from fullquant.runtime.sessions import OWN_ENGINES, open_session
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from tests.graph.toy_models import parse
from tests.writers.qdq_models import quantized, toy


@pytest.fixture
def written(tmp_path: Path) -> Path:
    model = toy("residual")
    placement, qparams, _ = quantized(model, scale_grid="short")
    write_onnx(model, placement, qparams, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("engine", OWN_ENGINES)
def test_a_file_and_its_graph_give_what_onnx_runtime_gives(written: Path, engine: str) -> None:
    x = np.random.default_rng(4).normal(size=(5, 3, 12, 12)).astype(np.float32)
    (expected,) = open_session(written, "onnxruntime", optimize=False).run({"x": x})
    for source in (written, read_model(written)):
        session = open_session(source, engine)
        assert (session.engine, session.input_names, session.output_names) == (engine, ("x",), ("y",))
        (actual,) = session.run({"x": x})
        if engine == "integer_gemmlowp":
            assert 0 < np.abs(actual - expected).max() < 1.0, "half-way values are rounded otherwise"
        else:
            np.testing.assert_array_equal(actual, expected)


def test_what_stays_float_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = toy("residual")
    placement, qparams, _ = quantized(model, skip_patterns=("conv_2",))
    session = open_session(build_onnx(model, placement, qparams), "integer")
    assert isinstance(session, IntegerModel)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "fullquant"]
    assert message == (
        "integer: 2 operators work with floats: Conv 'conv_0' (its output stays float); "
        "Conv 'conv_2' (it reads 'r0', which stays float)"
    )


def test_a_long_list_is_cut() -> None:
    nodes = tuple(FloatNode(f"n{i}", "Add", "why") for i in range(5))
    assert float_remark(nodes).endswith("Add 'n2' (why); and 2 more")


def test_files_that_cannot_be_read_back_are_refused() -> None:
    text = """g (float[N,4] x, float s, uint8 z, float t) => (float[N,4] y) {
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, t, z)
    }"""
    model = parse(text, s=np.float32(0.1), z=np.uint8(3), t=np.float32(0.2))
    with pytest.raises(EngineError, match=r"engine 'integer' refuses the model in memory: .* another grid"):
        open_session(model, "integer")
    with pytest.raises(EngineError, match="our own engines open files and graphs"):
        open_session(ir.to_proto(model).SerializeToString(), "integer")
