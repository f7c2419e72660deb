"""Which images calibration looks at, and which candidate it keeps."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.auto_compression.calibrate import _clearly_less, _logits, calibrated, spread
from fullquant.config.quantization import ObserverSettings
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from tests.graphs import small_classifier


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 70))
def test_images_are_spread_over_all_batches(sizes: list[int], count: int) -> None:
    numbers = np.arange(sum(sizes), dtype=np.float32)
    batches = np.split(numbers, np.cumsum(sizes)[:-1])
    found = spread(batches, count)
    chosen = np.sort(np.concatenate(found))
    assert len(chosen) == min(count, len(numbers))
    assert len(set(chosen)) == len(chosen)
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1
    # Each batch sees the list from its beginning to its end.
    assert max(len(batch) for batch in found) - min(len(batch) for batch in found) <= 1
    assert len(found) == min(8, len(chosen))
    for batch in found:
        assert batch[0] <= chosen[min(7, len(chosen) - 1)]
        assert batch[-1] >= chosen[-min(8, len(chosen))]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30))
def test_candidates_are_compared_on_images_that_they_were_not_fitted_to(sizes: list[int], count: int) -> None:
    numbers = np.arange(sum(sizes), dtype=np.float32)
    batches = np.split(numbers, np.cumsum(sizes)[:-1])
    fitted, judged = (np.concatenate(spread(batches, count, others=others)) for others in (False, True))
    assert len(judged) == len(set(judged)) == len(fitted)
    if len(numbers) >= 2 * count:
        assert not set(fitted) & set(judged)


def test_a_model_that_ends_in_a_softmax_is_compared_by_its_logits() -> None:
    """Int8 probabilities of a model that is always sure are 0 and 1, however far the logits are off."""
    model = small_classifier()
    softmax = model.graph.outputs[0].producer()
    assert softmax is not None
    assert softmax.op_type == "Softmax"
    source = softmax.inputs[0]
    assert source is not None
    assert _logits(model) == source.name
    model.graph.outputs[0] = source
    assert _logits(model) is None


def _log_of(caplog: pytest.LogCaptureFixture, settings: ObserverSettings, *, correct: bool) -> list[str]:
    model = small_classifier()
    rng = np.random.default_rng(0)
    batches = [rng.normal(0, 1, (16, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    caplog.clear()
    with caplog.at_level(logging.INFO, "fullquant"):
        student = calibrated(
            model, GraphModule(model), place(model, "paddle_lite", PlacementOptions()), batches, settings,
            correct=correct, probabilities=True, progress=False,
        )  # fmt: skip
    assert student.placement is not None
    return [record.getMessage() for record in caplog.records]


def test_the_candidate_with_the_least_divergence_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    lines = _log_of(caplog, ObserverSettings("auto", None, 0.9999, 0.9), correct=True)
    whole = [line for line in lines if line.startswith("calibration with") and "first images" not in line]
    distance = {line.split(": ")[0].removeprefix("calibration with "): float(line.split()[-1]) for line in whole}
    assert "fisher" in distance
    assert any("compensated rounding" in name for name in distance)
    kept = lines[-1].removeprefix("calibrated with ")
    # Among observers Fisher's is preferred; what is done to one of them is kept only where it brings it nearer.
    changed = {name: found for name, found in distance.items() if "," in name}
    plain = kept.split(",")[0]
    assert distance[kept] == min({**changed, plain: distance[plain]}.values())


def test_an_observer_is_better_where_the_difference_is_more_than_chance() -> None:
    random = np.random.default_rng(0)
    divergence = random.exponential(0.01, 64).astype(np.float32)
    assert _clearly_less(divergence * np.float32(0.8), divergence)
    assert not _clearly_less(divergence, divergence)
    assert not _clearly_less(divergence, divergence * np.float32(0.8))
    # One image alone decides the mean: that is chance.
    one = divergence.copy()
    one[5] += 0.5
    assert one.mean() > 1.5 * divergence.mean()
    assert not _clearly_less(divergence, one)


@pytest.mark.parametrize("compensate", [False, True])
def test_a_named_observer_decides_alone(caplog: pytest.LogCaptureFixture, compensate: bool) -> None:
    settings = ObserverSettings("mse", None, 0.9999, 0.9, compensate=compensate)
    lines = _log_of(caplog, settings, correct=False)
    assert [line.split(": ")[0] for line in lines[:-1]] == [
        "calibration with mse", *(["calibration with mse, compensated rounding"] if compensate else []),
    ]  # fmt: skip
