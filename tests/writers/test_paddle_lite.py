"""Paddle Lite's converter accepts the int8 file and gives every kernel its scales.

`paddle_lite_opt` (PyPI paddlelite 2.13rc0, CPython up to 3.10) is looked for on PATH and in FULLQUANT_PADDLE_LITE_OPT.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fullquant.formats.framework_pb2 import BlockDesc, ProgramDesc
from fullquant.placement.place import place
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams

CONVERTER = os.environ.get("FULLQUANT_PADDLE_LITE_OPT") or shutil.which("paddle_lite_opt")
pytestmark = pytest.mark.skipif(CONVERTER is None, reason="paddle_lite_opt is not on PATH (pip install paddlelite)")


def convert(folder: Path, targets: str) -> list[BlockDesc]:
    model = graphs.small_classifier()
    placement = place(model, "paddle_lite")
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    write_paddle(model, placement, minmax_qparams(model, placement, x), folder / "m.pdmodel", folder / "m.pdiparams")
    command = [str(CONVERTER), f"--model_file={folder / 'm.pdmodel'}", f"--param_file={folder / 'm.pdiparams'}"]
    command += [f"--valid_targets={targets}", "--optimize_out_type=protobuf", f"--optimize_out={folder / 'lite'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(ProgramDesc.FromString((folder / "lite" / "model").read_bytes()).blocks)


@pytest.mark.parametrize("targets", ["arm", "x86"])
def test_convolutions_run_in_int8(tmp_path: Path, targets: str) -> None:
    (block,) = convert(tmp_path, targets)
    convolutions = [op for op in block.ops if op.type in ("conv2d", "depthwise_conv2d")]
    assert len(convolutions) == 5
    for op in convolutions:
        attributes = {a.name for a in op.attrs}
        assert {"enable_int8", "Input0_scale", "Filter0_scale"} <= attributes
        assert any(var.parameter == "Bias" and var.arguments for var in op.inputs)  # the addition was fused


def test_the_whole_model_is_one_npu_subgraph(tmp_path: Path) -> None:
    blocks = convert(tmp_path, "verisilicon_timvx,arm")
    assert [op.type for op in blocks[0].ops] == ["feed", "calib", "subgraph", "calib", "fetch"]
    inside = {op.type for block in blocks[1:] for op in block.ops}
    assert "calib" not in inside  # nothing falls back to float
    for op in (op for block in blocks[1:] for op in block.ops):
        scales = {a.name for a in op.attrs if a.name.endswith("_scale")}
        assert any(name in scales for name in ("Out0_scale", "Output0_scale")), op.type
