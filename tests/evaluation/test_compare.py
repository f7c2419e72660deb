from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fullquant.errors import EngineError
from fullquant.evaluation.compare import compare_engines

_Array = np.ndarray[Any, Any]


class Batches:
    """Counts how often the data are read."""

    def __init__(self, count: int = 100, size: int = 16) -> None:
        random = np.random.default_rng(0)
        self.images = random.normal(size=(count, 5, 1, 1)).astype(np.float32)
        self.labels = self.images.reshape(count, -1).argmax(axis=1)
        self.size = size
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        for start in range(0, len(self.images), self.size):
            yield self.images[start : start + self.size], self.labels[start : start + self.size]


def _float(images: _Array) -> _Array:
    return images.reshape(len(images), -1)


def _first_wrong(images: _Array) -> _Array:
    """Another argmax for the first image of each batch."""
    outputs = _float(images).copy()
    outputs[0] = -outputs[0]
    return outputs


def test_one_pass_and_pairwise_shares() -> None:
    batches = Batches()
    rows = compare_engines(
        {"float": _float, "simulated": _first_wrong, "onnxruntime": _first_wrong, "paddle": _float},
        batches,
        progress=False,
    )
    assert batches.passes == 1
    assert [row.name for row in rows] == ["float", "simulated", "onnxruntime", "paddle"]
    by_name = {row.name: row for row in rows}
    changed = math.ceil(100 / 16) / 100
    for row in rows:
        assert row.accuracy is not None
        assert row.seconds_per_image > 0
        assert row.accuracy.agreement == row.same_as_float
    assert by_name["float"].same_as_float == 1
    assert by_name["onnxruntime"].same_as_simulated == 1
    assert by_name["onnxruntime"].same_as_float == pytest.approx(1 - changed)
    assert by_name["paddle"].same_as_simulated == pytest.approx(1 - changed)
    assert by_name["simulated"].accuracy is not None
    assert by_name["simulated"].accuracy.top1 == pytest.approx(1 - changed)


def test_failing_engines_become_rows() -> None:
    calls = []

    def refuses(images: _Array) -> _Array:
        calls.append(len(images))
        raise EngineError("no kernel for HardSwish")

    def nan(images: _Array) -> _Array:
        return np.full((len(images), 5), np.nan, np.float32)

    def odd(images: _Array) -> _Array:
        return np.zeros((len(images), 2, 2), np.float32)

    engines = {"float": _float, "refuses": refuses, "nan": nan, "odd": odd, "good": _float}
    rows = {row.name: row for row in compare_engines(engines, Batches(), progress=False)}
    assert rows["good"].same_as_float == 1
    assert len(calls) == 1  # not asked again
    assert rows["refuses"].error == "no kernel for HardSwish"
    assert "nan gave NaN or infinite outputs for 100 of 100 images" in rows["nan"].error
    assert "odd gave outputs of shape" in rows["odd"].error
    for name in ("refuses", "nan", "odd"):
        assert rows[name].accuracy is None
        assert math.isnan(rows[name].same_as_float)


def test_failing_reference_leaves_the_others_measured() -> None:
    def refuses(images: _Array) -> _Array:
        raise EngineError("gone")

    rows = compare_engines({"float": refuses, "paddle": _float}, Batches(), progress=False)
    assert rows[1].accuracy is not None
    assert rows[1].accuracy.top1 == 1
    assert math.isnan(rows[1].accuracy.agreement)
    assert math.isnan(rows[1].same_as_float)


def test_unknown_failures_are_not_swallowed() -> None:
    def broken(images: _Array) -> _Array:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compare_engines({"float": _float, "broken": broken}, Batches(), progress=False)
