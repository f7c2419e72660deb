"""ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from fullquant.runtime import sessions
from fullquant.runtime.executed import ExecutedGraph, ExecutedOperator, executed_graph

Array = npt.NDArray[Any]

# Operators of ONNX and of com.microsoft that multiply matrices, as they stand in an optimised graph.
_INTEGER_LAYERS = frozenset({
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
})  # fmt: skip
_FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


class OnnxRuntimeSession:
    """An ONNX file, or its bytes."""

    engine = "onnxruntime"

    def __init__(self, source: str | bytes, optimize: bool, threads: int | None) -> None:
        import onnxruntime

        self._source, self._optimize = source, optimize
        self._session = onnxruntime.InferenceSession(source, self._options(threads), providers=["CPUExecutionProvider"])
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())
        self._declared = {value.name: value.shape for value in self._session.get_inputs()}
        self._halves = frozenset(v.name for v in self._session.get_inputs() if v.type == "tensor(float16)")
        self._pixels = frozenset(v.name for v in self._session.get_inputs() if v.type == "tensor(uint8)")

    def _options(self, threads: int | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self._optimize else level.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors only: its warnings speak of optimisations
        if threads is not None:
            options.intra_op_num_threads = threads
        return options

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: array of any batch size}; the outputs, as arrays of their own."""
        sessions.check_feeds(feeds, self.input_names, self.engine)
        return sessions.by_fixed_batch(feeds, self._declared, self._run)

    def _run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            given = sessions.as_declared(feeds, self._declared, self._halves, self._pixels)
            results = self._session.run(None, given)
        except Exception as error:
            raise sessions.refusal(self.engine, "these inputs", error) from error
        return [sessions.without_halves(result) for result in results]

    def executed(self) -> ExecutedGraph:
        """The graph that it made of the file for this processor."""
        import onnxruntime

        with tempfile.TemporaryDirectory(prefix="fullquant-") as folder:
            path = Path(folder) / "optimised.onnx"
            options = self._options(1)
            options.optimized_model_filepath = str(path)
            onnxruntime.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])
            graph = onnx.load(path, load_external_data=False).graph
        return executed_graph(
            ExecutedOperator(
                node.op_type, node.op_type in _INTEGER_LAYERS | _FLOAT_LAYERS, node.op_type in _INTEGER_LAYERS
            )
            for node in graph.node
        )
