"""Small ONNX graphs for the tests, built with onnx.helper and read into onnx_ir."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]],
    constants: Mapping[str, np.ndarray],
    *,
    input_shape: Shape = ("N", 3, 8, 8),
    output: str = "y",
) -> ir.Model:
    """nodes: (op_type, inputs, outputs, attributes); nodes are named <op_type>_<index>. Shapes are inferred."""
    made = [
        helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{i}", **attributes)
        for i, (op, inputs, outputs, attributes) in enumerate(nodes)
    ]
    proto = helper.make_model(
        helper.make_graph(
            made,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run_onnxruntime(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The graph's output in ONNX Runtime, without its optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def small_classifier(seed: int = 0, classes: int = 5) -> ir.Model:
    """Conv-ReLU, depthwise Conv-ReLU6, squeeze-and-excitation, residual add, HardSwish, pool, Gemm, Softmax."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.4) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    constants = {
        "w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 1, 3, 3), "b2": normal(8),
        "w3": normal(4, 8, 1, 1), "b3": normal(4), "w4": normal(8, 4, 1, 1), "b4": normal(8),
        "w5": normal(8, 8, 1, 1), "b5": normal(8), "w6": normal(8, classes), "b6": normal(classes),
        "zero": np.float32(0), "six": np.float32(6), "flat": np.array([0, -1], np.int64),
    }  # fmt: skip
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes: list[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]] = [
        ("Conv", ["x", "w1", "b1"], ["c1"], pads),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2", "b2"], ["c2"], {**pads, "group": 8}),
        ("Clip", ["c2", "zero", "six"], ["r2"], {}),
        ("GlobalAveragePool", ["r2"], ["p1"], {}),
        ("Conv", ["p1", "w3", "b3"], ["c3"], {}),
        ("Relu", ["c3"], ["r3"], {}),
        ("Conv", ["r3", "w4", "b4"], ["c4"], {}),
        ("HardSigmoid", ["c4"], ["h4"], {"alpha": 1 / 6, "beta": 0.5}),
        ("Mul", ["r2", "h4"], ["se"], {}),
        ("Conv", ["se", "w5", "b5"], ["c5"], {}),
        ("Add", ["c5", "r1"], ["a1"], {}),
        ("HardSwish", ["a1"], ["hs"], {}),
        ("GlobalAveragePool", ["hs"], ["p2"], {}),
        ("Reshape", ["p2", "flat"], ["f"], {}),
        ("Gemm", ["f", "w6", "b6"], ["logits"], {}),
        ("Softmax", ["logits"], ["y"], {"axis": -1}),
    ]
    return graph(nodes, constants)
