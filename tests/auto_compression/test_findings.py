"""What the lint finds in written files reaches the caller, with the file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fullquant.auto_compression.exporting import ExportedFiles, findings
from fullquant.writers.onnx_qdq import write_onnx
from tests import graphs
from tests.lint.editing import PaddleFile, paddle_file
from tests.writers.test_pir import quantized


def test_a_fault_is_a_sentence_with_the_name_of_the_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    path = paddle_file(tmp_path, graphs.small_classifier(), x)
    made = quantized(x)
    write_onnx(made.model, made.placement, made.qparams, tmp_path / "m.onnx")
    files = ExportedFiles(tmp_path / "m.onnx", path, path.with_suffix(".pdiparams"))
    assert findings(files) == []
    file = PaddleFile(path)
    file.set(file.op("hard_swish"), "offset", 2.0)
    file.save()
    (sentence,) = findings(files)
    assert sentence.startswith("m.pdmodel: hard-swish: ")
