"""The conformance harness: its verdicts, and what becomes of a worker that answers, is slow, or dies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

_FOLDER = Path(__file__).parents[1] / "benchmarks" / "conformance"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_GOOD: dict[str, Any] = {
    "float_difference": 1e-6, "round_trip_difference": 1e-6, "full_integer": True, "float_tensors": [],
    "agreement": 0.3, "onnxruntime_same": 1.0, "paddle_same": 1.0, "paddle_json_same": 1.0, "parameters": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "pass"),
        ({"float_difference": 2e-4}, "float: differs"),
        ({"float_difference": float("nan")}, "float: differs"),
        ({"float_difference": 2e-4, "round_trip_difference": 2e-4, "float64_difference": 9e-5}, "pass"),
        ({"float_difference": 2e-4, "float64_difference": 1.1e-4}, "float: differs"),
        ({"float_difference": float("nan"), "float64_difference": float("nan")}, "float: differs"),
        ({"executor_difference": 2e-4}, "float in PyTorch: differs"),
        ({"round_trip_difference": 2e-4}, "round trip to a Paddle program: differs"),
        ({"round_trip_difference": float("nan")}, "round trip to a Paddle program: differs"),
        ({"full_integer": False, "float_tensors": ["t"]}, "float tensors: t"),
        ({"paddle_same": 0.98}, "exported: 98%"),
        ({"error": "read: no translation"}, "read: no translation"),
        ({"export_error": "too large"}, "not exported: too large"),
    ],
)
def test_verdicts(change: dict[str, Any], told: str) -> None:
    table = _module("table")
    assert table.verdict(_GOOD | change).startswith(told)
    document = table.markdown({"Net json": _GOOD | change}, "heading", ["Net", "Other"])
    built = 0 if "export_error" in change else 1
    assert f"**{int(told == 'pass')} of {built} exported models pass**" in document
    assert "Of 2 constructors 1 were run" in document
    assert "Not run (1): Other." in document


def test_rows_without_a_new_result_stay() -> None:
    table = _module("table")
    bad = {"error": "read: a|b"}
    first = table.markdown({"Net json": bad, "Net pdmodel": _GOOD, "Old json": bad}, "heading")
    assert "**1 of 3 exported models pass**" in first
    again = table.markdown({"Net json": _GOOD}, "heading", ["Net", "Old"], first)
    assert "**2 of 3 exported models pass**" in again
    assert "Of 2 constructors 2 were run and 1 pass" in again
    assert table.markdown({}, "heading", ["Net", "Old"], again) == again
    assert again.count("| Net | json |") == 1


def test_pixels_are_whole() -> None:
    """Each number becomes that of the nearest of 256 pixel values; whole pixels stay as they are."""
    pixels = _module("pixels")
    images = np.random.default_rng(0).uniform(-2.5, 3.0, (2, 3, 5, 7)).astype(np.float32)
    whole = pixels.as_pixels(images)
    assert whole.shape == images.shape
    assert whole.dtype == np.float32
    every = pixels.normalised(np.repeat(np.arange(256)[:, None], 3, axis=1))
    for channel in range(3):
        assert set(np.unique(whole[:, channel])) <= set(every[:, channel])
        steps = np.abs(whole[:, channel] - np.clip(images[:, channel], every[0, channel], every[-1, channel]))
        assert steps.max() <= 0.5001 * float(every[1, channel] - every[0, channel])
    np.testing.assert_array_equal(pixels.as_pixels(whole), whole)


def test_workers(tmp_path: Path) -> None:
    """A worker that dies or hangs is told, and the next task gets a new one."""
    script = (
        "import json, os, sys, time\n"
        "for line in sys.stdin:\n"
        "    task = json.loads(line)\n"
        "    time.sleep(task['sleep'])\n"
        "    if task.get('die'): os._exit(3)\n"
        "    print(json.dumps({'pid': os.getpid()}), flush=True)\n"
    )
    worker = _module("worker").Worker([sys.executable, "-c", script], tmp_path / "log", models=2)
    try:
        first, second, third = (worker.ask({"sleep": 0}, 20)["pid"] for _ in range(3))
        assert first == second != third
        assert "status 3" in worker.ask({"sleep": 0, "die": True}, 20)["error"]
        assert "longer than" in worker.ask({"sleep": 30}, 0.2)["error"]
        assert "pid" in worker.ask({"sleep": 0}, 20)
    finally:
        worker.close()
