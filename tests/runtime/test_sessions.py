"""Every engine runs the same model to the same numbers, quietly; what is missing or wrong is said in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import EngineError, ModelError
from fullquant.numerics import affine
from fullquant.numerics.qparams import QuantSpec, symmetric
from fullquant.placement.decision import Decision, Placement
from fullquant.placement.place import place
from fullquant.readers import read_model
from fullquant.runtime import sessions
from fullquant.runtime.sessions import available_engines, bound_latency, open_session
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams

ACTIVATION = QuantSpec(-128, 127)


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


PADDLE_ENGINES = [pytest.param(name, marks=needs("paddle")) for name in ("paddle", "paddle_onednn")]
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs("openvino")), *PADDLE_ENGINES]


@pytest.fixture(scope="module")
def toy() -> ir.Model:
    return graphs.small_classifier()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(toy: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "m.pdmodel"
    write_paddle(toy, None, {}, path, path.with_suffix(".pdiparams"))
    return path


@pytest.fixture(scope="module")
def int8_file(toy: ir.Model, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "m.pdmodel"
    placement = place(toy, "paddle_lite")
    write_paddle(toy, placement, minmax_qparams(toy, placement, images), path, path.with_suffix(".pdiparams"))
    return path


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(toy: ir.Model, float_file: Path, images: np.ndarray, engine: str, optimize: bool) -> None:
    session = open_session(float_file, engine, optimize=optimize, threads=1)
    assert (session.engine, session.input_names, session.output_names) == (engine, ("x",), ("y",))
    expected = graphs.run_onnxruntime(toy, images)
    for batch in (6, 1, 3):  # the batch size may change between runs
        (actual,) = session.run({"x": images[:batch]})
        np.testing.assert_allclose(actual, expected[:batch], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_results_are_copies(float_file: Path, images: np.ndarray, engine: str) -> None:
    session = open_session(float_file, engine, threads=1)
    feed = images.copy()
    (first,) = session.run({"x": feed})
    kept = first.copy()
    feed[:] = 7
    session.run({"x": feed})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs("openvino"))])
def test_models_in_memory_and_onnx_files(toy: ir.Model, images: np.ndarray, tmp_path: Path, engine: str) -> None:
    content = ir.to_proto(toy).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    expected = graphs.run_onnxruntime(toy, images)
    for source in (toy, content, tmp_path / "m.onnx", str(tmp_path)):
        (actual,) = open_session(source, engine).run({"x": images})
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("engine", PADDLE_ENGINES[:1])
@pytest.mark.parametrize("form", ["inference.pdmodel", "inference.json"])
def test_both_paddle_forms(assets: Path, engine: str, form: str) -> None:
    folder = assets / "models" / "mobilenetv3_small_ocr_cls"
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 192)).astype(np.float32)
    (expected,) = open_session(read_model(folder), "onnxruntime").run({"x": x})
    (actual,) = open_session(folder, engine, model_filename=form).run({"x": x})
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("engine", PADDLE_ENGINES)
def test_a_program_with_pad_does_not_crash_onednn(images: np.ndarray, tmp_path: Path, engine: str) -> None:
    """PaddlePaddle 3.3.1: oneDNN's kernel of `pad` corrupts the heap; the session keeps it away from oneDNN."""
    weight = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("Pad", ["c", "p"], ["y"], {})]
    model = graphs.graph(nodes, {"w": weight, "p": np.array([0, 8, 0, 0, 0, 8, 0, 0], np.int64)})
    write_paddle(model, None, {}, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams")
    session = open_session(tmp_path, engine, threads=1)
    for _ in range(4):
        (actual,) = session.run({"x": images})
    np.testing.assert_allclose(actual, graphs.run_onnxruntime(model, images), atol=1e-5)


@needs("paddle")
def test_onednn_int8_classifies_like_the_file(int8_file: Path, images: np.ndarray) -> None:
    """Its passes take the scales out of the file and round at their own places: near, not equal."""
    (plain,) = open_session(int8_file, "paddle", threads=1).run({"x": images})
    (onednn,) = open_session(int8_file, "paddle_onednn", threads=1).run({"x": images})
    assert not np.array_equal(plain, onednn)
    assert np.abs(plain - onednn).max() < 0.2


# --- rounding, the ground under every comparison ---------------------------------------------------------------------


def _round_in_paddle(values: np.ndarray, scale: float, folder: Path) -> np.ndarray:
    model = graphs.graph([("Identity", ["x"], ["y"], {})], {}, input_shape=("N", 4))
    decisions = {"x": Decision("x", "activation", ACTIVATION, "test"), "y": Decision("y", "activation", None, "test")}
    qparams = {"x": symmetric(ACTIVATION, np.float32(scale))}
    write_paddle(model, Placement("paddle_lite", decisions), qparams, folder / "m.pdmodel", folder / "m.pdiparams")
    (result,) = open_session(folder, "paddle", threads=1).run({"x": values.reshape(-1, 4)})
    return result.reshape(-1)


@needs("paddle")
@pytest.mark.parametrize("scale", [1.0, 2.0**-4])
def test_paddle_rounds_ties_to_even_and_clips_to_int8(tmp_path: Path, scale: float) -> None:
    ties = (np.arange(-140, 140) + 0.5).astype(np.float32) * np.float32(scale)
    extremes = np.array([1e30, -1e30, np.inf, -np.inf, 0.0, 1e-40, 127.49 * scale, -128.51 * scale], np.float32)
    values = np.concatenate([ties, extremes])
    expected = affine.fake_quantize(values, symmetric(ACTIVATION, np.float32(scale)))
    assert np.array_equal(_round_in_paddle(values, scale, tmp_path), expected)
    assert (expected.min(), expected.max()) == (-128 * scale, 127 * scale)


@needs("paddle")
@pytest.mark.parametrize("scale", [0.037, 3e-5])
def test_other_scales_differ_only_next_to_ties(tmp_path: Path, scale: float) -> None:
    values = (np.random.default_rng(0).uniform(-140, 140, 400_000) * scale).astype(np.float32)
    expected = affine.fake_quantize(values, symmetric(ACTIVATION, np.float32(scale)))
    actual = _round_in_paddle(values, scale, tmp_path)
    differing = np.abs(actual - expected) > 0.5 * scale
    assert differing.mean() < 5e-5
    fraction = np.abs(values[differing] / np.float32(scale)) % 1
    np.testing.assert_allclose(fraction, 0.5, atol=1e-4)
    np.testing.assert_allclose(actual[~differing], expected[~differing], rtol=3e-7)


# --- errors, noise, laziness -----------------------------------------------------------------------------------------


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="unknown engine 'tensorrt'; it is one of onnxruntime, paddle"):
        open_session("m.onnx", "tensorrt")


@pytest.mark.parametrize(("engine", "package"), [("paddle", "paddlepaddle"), ("openvino", "openvino")])
def test_a_missing_runtime_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, engine: str, package: str) -> None:
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("FULLQUANT_PADDLE_LITE_OPT", "/no/such/program")
    assert available_engines() == ()
    with pytest.raises(EngineError, match=f"run: pip install {package}$"):
        open_session("m.pdmodel", engine)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model here"):
        open_session(tmp_path, "onnxruntime")


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_feeds(float_file: Path, images: np.ndarray, engine: str) -> None:
    session = open_session(float_file, engine, threads=1)
    with pytest.raises(EngineError, match="the inputs given are image; the model's inputs are x"):
        session.run({"image": images})
    with pytest.raises(EngineError, match=f"engine '{engine}' refuses these inputs: .+") as error:
        session.run({"x": images[:, :2]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_damaged_onnx(tmp_path: Path, engine: str) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0anot a model")
    with pytest.raises(EngineError, match=f"engine '{engine}' refuses .*m.onnx: ") as error:
        open_session(tmp_path / "m.onnx", engine)
    assert "\n" not in str(error.value)


@needs("paddle")
def test_paddle_wants_paddle_files(toy: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="opens files only"):
        open_session(toy, "paddle")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"m\.onnx is ONNX; use engine 'onnxruntime'"):
        open_session(tmp_path, "paddle")


@needs("paddle")
def test_onednn_refuses_a_json_program_with_pad(assets: Path) -> None:
    with pytest.raises(EngineError, match="kernel of pad corrupts memory"):
        open_session(assets / "models" / "resnet20_cifar10" / "inference.json", "paddle_onednn")


@needs("paddle")
def test_paddle_says_nothing(int8_file: Path) -> None:
    code = (
        "import sys; from fullquant.runtime.sessions import open_session\n"
        "for engine in ('paddle', 'paddle_onednn'): open_session(sys.argv[1], engine)\n"
        "print('out'); print('err', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(int8_file)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from fullquant.runtime import sessions; sessions.available_engines()\n"
        "print([m for m in ('paddle', 'openvino', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_latency_is_measured_without_the_warmup() -> None:
    class Slow:
        engine, input_names, output_names, count = "slow", ("x",), ("y",), 0

        def run(self, feeds: object) -> list[np.ndarray]:
            self.count += 1
            time.sleep(0.05 if self.count <= 2 else 0.004)
            return []

    session = Slow()
    median, p90 = bound_latency(session, {}, warmup=2, repeat=9)
    assert session.count == 11
    assert 4 <= median <= p90 < 45


def test_a_file_with_a_fixed_batch_computes_so_many_images_at_a_time() -> None:
    """torch.onnx.export without dynamic axes fixes the batch at 1; validation comes in batches of 32."""
    calls: list[int] = []

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(len(feeds["x"]))
        return [feeds["x"] * 2, feeds["x"].sum(axis=1)]

    images = np.arange(12, dtype=np.float32).reshape(6, 2)
    doubled, summed = sessions.by_fixed_batch({"x": images}, {"x": [2, 2]}, run)
    assert calls == [2, 2, 2]
    np.testing.assert_array_equal(doubled, images * 2)
    np.testing.assert_array_equal(summed, images.sum(axis=1))
    calls.clear()
    for declared in ([None, 2], ["N", 2], [6, 2], [4, 2]):
        sessions.by_fixed_batch({"x": images}, {"x": declared}, run)
    assert calls == [6, 6, 6, 6]
