"""`verify` names the sum at which optimised ONNX Runtime leaves the file, and why; the plain one leaves it nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.auto_compression.differences import Explanation, explain
from fullquant.calibration.sums import agreeing_sums
from fullquant.numerics.qparams import symmetric
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import find_model, read_model
from fullquant.readers.quantized import split_quantizers
from fullquant.runtime.departure import Simulation
from fullquant.writers.onnx_qdq import write_onnx
from tests.graph.toy_models import Array, feeds, parse
from tests.writers.qdq_oracle import calibrate

#: The sum stands in the middle; a convolution behind it carries the difference on.
SUM = """g (float[N,4,16,16] x, float[4,4,1,1] w0, float[4,4,1,1] w1, float[4,4,3,3] w2) => (float y) {
  a = Conv(x, w0)
  b = Conv(a, w1)
  s = Add(a, b)
  %s
  y = Conv(r, w2)
}"""


def written(folder: Path, behind: str, *, agreeing: bool) -> tuple[Path, Array]:
    """A file whose sum has the scale 1.5 for operands of 1 and 1.125/2 (times 1/16), and images."""
    model = prepare(parse(SUM % behind))
    placement = place(model, options=PlacementOptions(scale_grid="short"))
    x = feeds(model)[1]
    qparams = calibrate(model, placement, x)
    for name, scale in {"a": 1 / 16, "b": 1.125 / 32, "r" if "r" in qparams else "s": 1.5 / 16}.items():
        qparams[name] = symmetric(qparams[name].spec, scale)
    qparams = agreeing_sums(model, placement, qparams) if agreeing else qparams
    write_onnx(model, placement, qparams, folder / "m.onnx")
    return folder / "m.onnx", x


def looked_at(path: Path, x: Array, optimise: bool) -> Explanation:
    files = find_model(path)
    model: ir.Model = read_model(path)
    return explain(Simulation(split_quantizers(model)), files, "onnxruntime", optimise, np.asarray(x, np.float32))


@pytest.mark.parametrize(("behind", "tensor"), [("r = Relu(s)", "r"), ("r = MaxPool <kernel_shape = [1, 1]> (s)", "s")])
def test_the_sum_is_named(tmp_path: Path, behind: str, tensor: str) -> None:
    path, x = written(tmp_path, behind, agreeing=False)
    found = looked_at(path, x, True)
    assert found.departure.whole
    assert found.departure.first is not None
    assert (found.departure.first.tensor, found.departure.first.steps) == (tensor, 1)
    assert f"the sum {tensor!r}" in found.cause
    assert "100% lie half-way" in found.cause
    assert looked_at(path, x, False).departure.first is None


def test_scales_that_agree_leave_nothing_to_name(tmp_path: Path) -> None:
    path, x = written(tmp_path, "r = Relu(s)", agreeing=True)
    assert looked_at(path, x, True).departure.first is None
