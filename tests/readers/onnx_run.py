"""Runs a canonical graph in ONNX Runtime, without its graph optimizations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """Output of the model for one input."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {str(model.graph.inputs[0].name): x})
    return np.asarray(result)
