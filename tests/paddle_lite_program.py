"""Paddle Lite in the tests: where its converter is, a stand-in for it, and an int8 file to give it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.placement.place import PlacementOptions, place
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams, simulate

# Where a developer's own installation may lie, beside PATH and the environment variable.
_USUAL = "/tmp/lite/bin/paddle_lite_opt"
CONVERTER = os.environ.get("FULLQUANT_PADDLE_LITE_OPT") or shutil.which("paddle_lite_opt") or shutil.which(_USUAL)
needs_paddle_lite = pytest.mark.skipif(
    CONVERTER is None, reason="paddle_lite_opt is not on PATH (package paddlelite, CPython up to 3.10)"
)


def script(path: Path, text: str) -> Path:
    """An executable shell script in the converter's place."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Int8File:
    """The small classifier in int8: its files, and what they compute."""

    def __init__(self, folder: Path, *, reduce_range: bool = True, model: ir.Model | None = None) -> None:
        self.graph = graphs.small_classifier() if model is None else model
        self.placement = place(self.graph, "verisilicon_timvx", PlacementOptions(reduce_range=reduce_range))
        self.x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
        self.qparams = minmax_qparams(self.graph, self.placement, self.x)
        self.model, self.params = folder / "m.pdmodel", folder / "m.pdiparams"
        write_paddle(self.graph, self.placement, self.qparams, self.model, self.params)
        self.output = str(self.graph.graph.outputs[0].name)

    @property
    def step(self) -> float:
        return float(self.qparams[self.placement.scale_owner(self.output)].scale)

    def expected(self, x: np.ndarray) -> np.ndarray:
        return simulate(self.graph, self.placement, self.qparams, x)[f"{self.output}@rounded"]
