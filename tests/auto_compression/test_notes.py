"""The remark on integer kernels names the cause that this processor has."""

from __future__ import annotations

import pytest

from fullquant.auto_compression.reporting import notes
from fullquant.report.record import ResultRow


def _rows(optimised: float) -> list[ResultRow]:
    return [
        ResultRow("QAT", "onnxruntime", False, same_as_simulated=1.0),
        ResultRow("QAT", "onnxruntime", True, same_as_simulated=optimised),
    ]


@pytest.mark.parametrize(
    ("vnni", "cause"), [("no", "saturates; QuantAware"), ("yes", "Nothing saturates"), (None, "on this processor")]
)
def test_kernels_that_differ(vnni: str | None, cause: str) -> None:
    (note,) = notes(_rows(0.95), vnni)
    assert note.startswith("QAT: ONNX Runtime with optimisations gives another class than the file means on 5.0%")
    assert cause in note


def test_kernels_that_agree_need_no_remark() -> None:
    assert notes(_rows(0.997), "no") == []


@pytest.mark.parametrize(
    ("vnni", "remedy"), [("no", "reduce_range"), ("yes", "target: openvino"), (None, "target: openvino")]
)
def test_openvino_that_computes_something_else(vnni: str | None, remedy: str) -> None:
    (note,) = notes([ResultRow("PTQ", "openvino", True, same_as_simulated=0.083)], vnni)
    assert note.startswith("PTQ: OpenVINO gives another class than the file means on 91.7%")
    assert remedy in note
    assert notes([ResultRow("PTQ", "openvino", True, same_as_simulated=0.97)], vnni) == []
