"""A quantized file opened in our own executors: the simulation that was exported, and the integer reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from fullquant.errors import EngineError, ModelError
from fullquant.readers.quantized import QuantizedGraph, is_quantized, split_quantizers
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.integer import FloatNode, IntegerModel
from fullquant.runtime.simulator import Simulator

log = logging.getLogger("fullquant")

_SHOWN = 3


def simulator(quantized: QuantizedGraph) -> Simulator:
    """The fake-quantized model in PyTorch, ready for inference."""
    module = GraphModule(quantized.model, placement=quantized.placement, qparams=quantized.qparams)
    module.freeze()
    return Simulator(module)


def integer_model(quantized: QuantizedGraph) -> IntegerModel:
    """The integer reference; the log names what the file leaves in float."""
    model = IntegerModel(quantized.model, quantized.placement, quantized.qparams)
    if model.float_nodes:
        log.warning("%s", float_remark(model.float_nodes))
    return model


def _gemmlowp(quantized: QuantizedGraph) -> IntegerModel:
    model = IntegerModel(quantized.model, quantized.placement, quantized.qparams, rounding="gemmlowp")
    model.engine = "integer_gemmlowp"
    return model


def float_remark(nodes: tuple[FloatNode, ...]) -> str:
    """One line about the operators whose result, or whose arithmetic, is float in the integer reference, and why."""
    shown = "; ".join(f"{n.operator} {n.node!r} ({n.reason})" for n in nodes[:_SHOWN])
    more = f"; and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"integer: {len(nodes)} operators work with floats: {shown}{more}"


_OPENERS: Mapping[str, Callable[[QuantizedGraph], Simulator | IntegerModel]] = MappingProxyType(
    {"simulated": simulator, "integer": integer_model, "integer_gemmlowp": _gemmlowp}
)


def open_own(model: ir.Model, engine: str, what: str) -> Simulator | IntegerModel:
    """A graph with quantizers, as `read_model` gives it, in one of sessions.OWN_ENGINES.

    EngineError for a float model, and where the quantizers cannot be read back.
    """
    if not is_quantized(model):
        raise EngineError(f"engine {engine!r} runs quantized models only, {what} is float; use engine 'onnxruntime'")
    try:
        return _OPENERS[engine](split_quantizers(model))
    except ModelError as error:
        raise EngineError(f"engine {engine!r} refuses {what}: {error}") from error
