from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fullquant.data import ImageList, ImageLoader, Preprocess
from fullquant.errors import DataError, EngineError
from fullquant.evaluation.accuracy import (
    Accuracy,
    AccuracyMeter,
    collect_outputs,
    evaluate_session,
    images_of,
    kl_divergence,
    label_ranks,
    log_softmax,
)

_Array = np.ndarray[Any, Any]


def _batches(count: int, size: int, classes: int = 10, seed: int = 0) -> list[tuple[_Array, _Array]]:
    """Images [B, classes, 1, 1] that a model may return as its logits, with random labels."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(count, classes, 1, 1)).astype(np.float32)
    labels = random.integers(0, classes, count)
    return [(images[start : start + size], labels[start : start + size]) for start in range(0, count, size)]


def _identity(images: _Array) -> _Array:
    return images.reshape(len(images), -1)


def test_hand_made_case() -> None:
    outputs = np.array(
        [[0.1, 0.9, 0.0, 0, 0, 0, 0], [3, 2, 1, 0, -1, -2, -3], [3, 2, 1, 0, -1, -2, -3], [1, 0, 0, 0, 0, 0, 0]]
    )
    meter = AccuracyMeter()
    meter.update(outputs, np.array([1, 4, 5, -1]), reference=outputs[[0, 1, 2, 0]])
    result = meter.result()
    assert (result.top1, result.top5, result.agreement) == (1 / 3, 2 / 3, 3 / 4)
    assert (result.count, result.labelled) == (4, 3)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_matches_a_plain_sort_however_it_is_batched(
    count: int, classes: int, size: int, seed: int, with_ties: bool
) -> None:
    random = np.random.default_rng(seed)
    outputs = random.integers(-2, 3, (count, classes)) / 1.0 if with_ties else random.normal(size=(count, classes))
    reference = random.normal(size=(count, classes))
    labels = random.integers(-1, classes, count)
    meter = AccuracyMeter()
    for start in range(0, count, size):
        part = slice(start, start + size)
        meter.update(outputs[part], labels[part], reference[part])
    result = meter.result()
    order = np.argsort(-outputs, axis=1, kind="stable")
    known = np.flatnonzero(labels >= 0)
    for share, most in ((result.top1, 1), (result.top5, 5)):
        right = [labels[row] in order[row, :most] for row in known]
        assert share == pytest.approx(np.mean(right)) if right else math.isnan(share)
    agreement = np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1))
    assert result.agreement == pytest.approx(agreement)
    assert result.mean_kl == pytest.approx(np.mean(kl_divergence(reference, outputs)), abs=1e-12)


def test_ties_go_to_the_first_index() -> None:
    outputs = np.array([[1.0, 1.0, 0.0]] * 3)
    np.testing.assert_array_equal(label_ranks(outputs, np.array([0, 1, 2])), [0, 1, 2])


def test_top5_of_two_classes_is_everything() -> None:
    meter = AccuracyMeter()
    meter.update(np.array([[0.9, 0.1]] * 4), np.array([0, 1, 1, 0]))
    assert (meter.result().top1, meter.result().top5) == (0.5, 1.0)


def test_nothing_to_measure_is_nan() -> None:
    meter = AccuracyMeter()
    meter.update(np.zeros((3, 4)), np.full(3, -1))
    result = meter.result()
    assert all(math.isnan(value) for value in (result.top1, result.top5, result.agreement, result.mean_kl))
    assert math.isnan(result.top1_stderr)
    assert all(math.isnan(end) for end in result.top1_interval)
    assert result.count == 3


@given(st.integers(2, 8), st.integers(0, 99), st.floats(-1e4, 1e4))
def test_divergence_properties(classes: int, seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    p, q = random.normal(0, 2, (2, 6, classes))
    divergence = kl_divergence(p, q)
    assert (divergence >= -1e-12).all()
    np.testing.assert_allclose(kl_divergence(p, p), 0, atol=1e-12)
    np.testing.assert_allclose(kl_divergence(p + shift, q - shift), divergence, atol=1e-7)
    softmax = [np.exp(log_softmax(rows)) for rows in (p, q)]
    np.testing.assert_allclose(kl_divergence(*softmax, probabilities=True), divergence, atol=1e-6)
    assert np.abs(kl_divergence(q, p) - divergence).max() > 0  # it isn't symmetric


def test_divergence_by_hand() -> None:
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_divergence(np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), probabilities=True)[0] == pytest.approx(
        expected
    )
    logits = np.array([[math.log(3), 0.0]])
    assert kl_divergence(logits, np.zeros((1, 2)))[0] == pytest.approx(expected)


def test_divergence_is_stable() -> None:
    assert kl_divergence(np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]]))[0] == pytest.approx(2e4)
    assert np.isfinite(kl_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), probabilities=True)).all()
    # an int8 softmax (steps of 1/127) does not add up to 1
    assert kl_divergence(np.array([[0.5, 0.5]]), np.array([[63 / 127, 63 / 127]]), probabilities=True)[
        0
    ] == pytest.approx(0)


def test_interval_of_known_value() -> None:
    """Wilson's interval for 90 of 100: 0.8256 to 0.9448 (statsmodels' proportion_confint gives the same)."""
    low, high = Accuracy(0.9, 1, 1, 0, 100).top1_interval
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert Accuracy(0.9, 1, 1, 0, 100).top1_stderr == pytest.approx(0.03)
    assert Accuracy(0.9, 1, 1, 0, 400, labelled=100).top1_stderr == pytest.approx(0.03)
    assert Accuracy(1.0, 1, 1, 0, 800).top1_interval[1] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_outputs_are_an_error_with_the_engine(bad: float) -> None:
    meter = AccuracyMeter(engine="openvino")
    outputs = np.eye(4)
    outputs[2, 1] = bad
    meter.update(outputs, np.arange(4), reference=np.eye(4))
    assert meter.non_finite == 1
    assert meter.so_far().top1 == 1.0
    assert meter.so_far().count == 4
    with pytest.raises(EngineError, match="openvino gave NaN or infinite outputs for 1 of 4 images"):
        meter.result()


def test_mismatches_are_named() -> None:
    meter = AccuracyMeter(engine="paddle")
    with pytest.raises(EngineError, match=r"paddle gave outputs of shape \[4, 3, 2\]"):
        meter.update(np.zeros((4, 3, 2)), np.zeros(4, int))
    with pytest.raises(EngineError, match="paddle gave 4 outputs for 3 images"):
        meter.update(np.zeros((4, 3)), np.zeros(3, int))
    with pytest.raises(DataError, match="label 7 does not fit a model of 3 classes"):
        meter.update(np.zeros((1, 3)), np.array([7]))
    with pytest.raises(EngineError, match=r"shape \[1, 3\], the reference \[1, 4\]"):
        meter.update(np.zeros((1, 3)), np.array([0]), np.zeros((1, 4)))


def test_reference_in_every_form() -> None:
    batches = _batches(50, 8)
    outputs = collect_outputs(_identity, batches, progress=False)
    for reference in (outputs, np.concatenate(outputs), _identity):
        result = evaluate_session(_identity, batches, reference, progress=False)
        assert (result.agreement, result.mean_kl, result.count) == (1.0, 0.0, 50)
    wrong = evaluate_session(lambda images: -_identity(images), batches, outputs, progress=False)
    assert wrong.agreement < 0.5
    assert wrong.mean_kl > 0.1


@pytest.mark.parametrize("cut", ["batch", "image"])
def test_reference_of_other_images_is_refused(cut: str) -> None:
    batches = _batches(50, 8)
    outputs = collect_outputs(_identity, batches, progress=False)
    short = outputs[:-1] if cut == "batch" else np.concatenate(outputs)[:-1]
    with pytest.raises(DataError, match="do not belong to these images"):
        evaluate_session(_identity, batches, short, progress=False)


def test_reused_output_buffers_do_not_hurt() -> None:
    buffer = np.empty((8, 10), np.float32)

    def session(images: _Array) -> _Array:
        buffer[: len(images)] = _identity(images)
        return buffer[: len(images)]

    batches = _batches(50, 8)
    outputs = collect_outputs(session, batches, progress=False)
    np.testing.assert_array_equal(np.concatenate(outputs), np.concatenate([_identity(images) for images, _ in batches]))


def test_image_loader_is_evaluated(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (8, 8), (255, 0, 0) if index % 2 else (0, 255, 0)).save(tmp_path / f"{index}.png")
    images = ImageList.from_paths(tmp_path, [f"{index}.png" for index in range(6)], [1, 0, 1, 0, 1, 1])
    loader = ImageLoader(images, Preprocess(8, None, interpolation="nearest"), 4)
    assert images_of(loader) == 6
    result = evaluate_session(lambda batch: batch.mean(axis=(2, 3)), loader, engine="colour", progress=False)
    assert result.top1 == pytest.approx(5 / 6)


def test_image_counts() -> None:
    assert images_of(_batches(50, 8)) == 50
    assert images_of(iter(_batches(50, 8))) is None
