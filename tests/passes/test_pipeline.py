"""All passes together: on made graphs, on the real models, and against golden texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ModelError
from fullquant.graph.text import to_text
from fullquant.passes import PassResult, pipeline, prepare, run_passes
from tests.golden.golden import golden
from tests.graph.toy_models import check, operators, parse, run

#: What a Paddle reader makes of a small MobileNetV3: unfolded normalizations, biases as Add, dropout, a shape chain.
BLOCK = """g (float[N,3,H,W] x, float[8,3,3,3] w0, float[8,1,3,3] w1, float[8,8,1,1] w2, float[2,8,1,1] w3, float[2] b3,
           float[8,2,1,1] w4, float[8] b4, float[8,4] w5, float[4] b5) => (float[N,4] prob) {
  pad = Pad(x, pads)
  c0 = Conv <strides = [2,2]> (pad, w0)
  n0 = BatchNormalization(c0, gamma, beta, mean, variance)
  h0 = HardSigmoid <alpha = 0.16666667, beta = 0.5> (n0)
  s0 = Mul(n0, h0)
  c1 = Conv <auto_pad = "SAME_UPPER", group = 8> (s0, w1)
  n1 = BatchNormalization(c1, gamma, beta, mean, variance)
  r1 = Relu(n1)
  r6 = Min(r1, six)
  p1 = ReduceMean <keepdims = 1> (r6, axes)
  c3 = Conv(p1, w3)
  q3 = Reshape(b3, to4)
  a3 = Add(c3, q3)
  r3 = Relu(a3)
  c4 = Conv(r3, w4)
  q4 = Reshape(b4, to4)
  a4 = Add(q4, c4)
  g4 = HardSigmoid(a4)
  e1 = Mul(r6, g4)
  c2 = Conv(e1, w2)
  n2 = BatchNormalization(c2, gamma, beta, mean, variance)
  t2 = Add(s0, n2)
  d2 = Mul(t2, keep)
  p2 = GlobalAveragePool(d2)
  sh = Shape(p2)
  i1 = Cast <to = 6> (sh)
  sl = Slice(i1, zero, one)
  cc = Concat <axis = 0> (sl, width)
  i2 = Cast <to = 7> (cc)
  f2 = Reshape(p2, i2)
  m5 = MatMul(f2, w5)
  a5 = Add(m5, b5)
  sm = Softmax <axis = -1> (a5)
  prob = Identity(sm)
}"""


def block() -> ir.Model:
    rng = np.random.default_rng(1)
    return parse(
        BLOCK,
        gamma=rng.normal(size=8),
        beta=rng.normal(size=8),
        mean=rng.normal(size=8),
        variance=rng.uniform(0.1, 1.0, size=8),
        pads=np.int64([0, 0, 0, 0, 0, 0, 1, 1]),
        axes=np.int64([2, 3]),
        to4=np.int64([1, -1, 1, 1]),
        six=np.float32(6),
        keep=np.float32(0.8),
        zero=np.int64([0]),
        one=np.int64([1]),
        width=np.int32([8]),
    )


def count(model: ir.Model) -> int:
    return sum(result.count for result in run_passes(model))


def test_a_mobilenet_block() -> None:
    model = block()
    assert check(count, model, {"H": 9, "W": 8}) > 0
    expected = "Conv HardSwish Conv Clip GlobalAveragePool Conv Relu Conv HardSigmoid Mul Conv Add GlobalAveragePool"
    assert operators(model) == [*expected.split(), "Flatten", "Gemm", "Softmax"]
    golden("mobilenet_block", to_text(model))


def test_results_name_the_passes_in_order() -> None:
    results = run_passes(block())
    assert [result.name for result in results] == list(
        dict.fromkeys(p.__name__ for p in (*pipeline.PIPELINE, *pipeline.FINAL))
    )
    assert {PassResult("fold_batch_norm", 3), PassResult("fold_pad", 1)} <= set(results)


def test_prepare_leaves_its_argument() -> None:
    model = block()
    before = to_text(model)
    prepared = prepare(model)
    assert to_text(model) == before
    assert "BatchNormalization" not in operators(prepared)


def test_a_pass_that_breaks_the_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_it(model: ir.Model) -> int:
        next(iter(model.graph)).name = None
        return 1

    monkeypatch.setattr(pipeline, "PIPELINE", (break_it,))
    with pytest.raises(ModelError, match=r"after the pass break_it.*has no name"):
        run_passes(block())


def test_passes_that_never_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(model: ir.Model) -> int:
        return 1

    monkeypatch.setattr(pipeline, "PIPELINE", (restless,))
    with pytest.raises(ModelError, match="restless"):
        run_passes(block())


def test_a_lone_normalization_waits_for_the_folds() -> None:
    """A normalization in front of a padded convolution ends as a depthwise one; behind a convolution it folds."""
    model = parse(
        "g (float[N,4,6,6] x, float[4,4,3,3] w) => (float y) "
        "{ a = Mul(x, c)  b = Relu(a)  d = Conv <pads = [1,1,1,1]> (b, w)  y = Mul(d, c) }",
        c=np.float32([1, 2, 3, -4]).reshape(1, 4, 1, 1),
    )
    check(count, model)
    assert operators(model) == ["Conv", "Relu", "Conv"]


# --- real models -------------------------------------------------------------------------------------------------


def test_the_text_line_classifier(ocr_model_dir: Path) -> None:
    read_model = pytest.importorskip("fullquant.readers").read_model
    model = read_model(ocr_model_dir)
    prepared = prepare(model)
    feed = np.random.default_rng(0).uniform(-1, 1, size=(2, 3, 48, 192)).astype(np.float32)
    np.testing.assert_allclose(run(prepared, feed), run(model, feed), atol=1e-5)
    text = to_text(prepared)
    # Names and structure; the contents are the model's.
    golden(
        "text_line_classifier", "".join(line + "\n" for line in text.splitlines() if not line.startswith("initializer"))
    )
    assert {"Conv", "HardSwish", "Flatten", "Gemm"} <= set(operators(prepared))
    assert not {"Reshape", "Shape", "MatMul", "BatchNormalization"} & set(operators(prepared))


MODELS = {
    "mobilenetv3_small_ocr_cls": (3, 48, 192),
    "resnet20_cifar10": (3, 32, 32),
    "resnet56_cifar10": (3, 32, 32),
    "mobilenetv3_large_cifar10": (3, 64, 64),
    "efficientnet_lite0_imagenet": (3, 224, 224),
}


@pytest.mark.parametrize("program", ["inference.pdmodel", "inference.json"])
@pytest.mark.parametrize("name", MODELS)
def test_the_real_models(assets: Path, name: str, program: str) -> None:
    read_model = pytest.importorskip("fullquant.readers").read_model
    model = read_model(assets / "models" / name, model_filename=program)
    feed = np.random.default_rng(0).normal(size=(2, *MODELS[name])).astype(np.float32)
    expected = run(model, feed)
    run_passes(model)
    np.testing.assert_allclose(run(model, feed), expected, atol=1e-6 * max(1.0, float(np.abs(expected).max())) * 10)
    assert "BatchNormalization" not in operators(model)
    assert "MatMul" not in operators(model)
    assert count(model) == 0
