"""OpenVINO's CPU plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fullquant.runtime import sessions
from fullquant.runtime.executed import ExecutedGraph, ExecutedOperator, executed_graph

Array = npt.NDArray[Any]

_LAYERS = frozenset({"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"})
_INTEGERS = frozenset({"i8", "u8"})
_NOT_COMPUTED = frozenset({"Const", "Input", "Output"})


class OpenVinoSession:
    """An ONNX file, or its bytes."""

    engine = "openvino"

    def __init__(self, source: str | bytes, optimize: bool, threads: int | None) -> None:
        import openvino

        # float32, also where the processor has bfloat16: results are compared with other runtimes
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if not optimize:
            settings["LP_TRANSFORMS_MODE"] = "NO"
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(source), "CPU", settings)
        self.input_names = tuple(port.get_any_name() for port in self._compiled.inputs)
        self.output_names = tuple(port.get_any_name() for port in self._compiled.outputs)
        self._declared = {
            port.get_any_name(): [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
            for port in self._compiled.inputs
            if port.get_partial_shape().rank.is_static
        }
        kinds = {port.get_any_name(): port.get_element_type() for port in self._compiled.inputs}
        self._halves = frozenset(name for name, kind in kinds.items() if kind == openvino.Type.f16)
        self._pixels = frozenset(name for name, kind in kinds.items() if kind == openvino.Type.u8)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: array of any batch size}; the outputs, as arrays of their own."""
        sessions.check_feeds(feeds, self.input_names, self.engine)
        return sessions.by_fixed_batch(feeds, self._declared, self._run)

    def _run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            results = self._compiled(sessions.as_declared(feeds, self._declared, self._halves, self._pixels))
        except Exception as error:
            raise sessions.refusal(self.engine, "these inputs", error) from error
        return [sessions.without_halves(np.array(results[port])) for port in self._compiled.outputs]

    def executed(self) -> ExecutedGraph:
        """The graph that the plugin executes, with the precision of each of its operators."""
        return executed_graph(self._operators())

    def _operators(self) -> Iterator[ExecutedOperator]:
        for operator in self._compiled.get_runtime_model().get_ops():
            facts = operator.get_rt_info()
            kind, precision = (_text(facts, key) for key in ("layerType", "runtimePrecision"))
            if kind not in _NOT_COMPUTED:
                yield ExecutedOperator(f"{kind} {precision}", kind in _LAYERS, precision in _INTEGERS)


def _text(facts: Any, key: str) -> str:
    if key not in facts:
        return ""
    value = facts[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)
