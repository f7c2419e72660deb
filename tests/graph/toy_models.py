"""Small models written as ONNX text, and the oracle: ONNX Runtime with its optimisations off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from fullquant.graph.edit import dims
from fullquant.graph.verify import verify

Array = npt.NDArray[np.generic]


def parse(graph: str, seed: int = 0, opset: int = 20, **constants: npt.ArrayLike) -> ir.Model:
    """A model from ONNX text such as "g (float[N,3,8,8] x, float[4,3,3,3] w) => (float y) { y = Conv(x, w) }".

    Every input but the first is an initializer: float ones are random unless given in `constants`. Constants that the
    header doesn't declare become initializers too. Nodes are named after operator and position: conv_0.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {graph}')
    model = ir.from_proto(proto)
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        assert value.shape is not None
        array = constants.pop(str(value.name), None)
        if array is None:
            array = rng.normal(size=value.shape.numpy()) * 0.5
        _fill(value, np.asarray(array))
        model.graph.register_initializer(value)
    for name, array in constants.items():
        _declare(model.graph, name, np.asarray(array))
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type.lower()}_{index}"
    verify(model)
    return model


def _fill(value: ir.Value, array: Array) -> None:
    data = array.astype(np.float32) if array.dtype == np.float64 else array
    value.const_value = ir.Tensor(data, name=value.name)
    value.shape, value.type = ir.Shape(data.shape), ir.TensorType(value.const_value.dtype)


def _declare(graph: ir.Graph, name: str, array: Array) -> None:
    """Makes `name`, which nodes read but the header doesn't declare, an initializer."""
    value = ir.Value(name=name)
    _fill(value, array)
    for node in graph:
        for index, used in enumerate(node.inputs):
            if used is not None and used.name == name:
                node.replace_input_with(index, value)
    graph.register_initializer(value)


def run(model: ir.Model, feed: Array, *, optimise: bool = False) -> Array:
    """The model's only output in ONNX Runtime, optimisations off unless they are asked for."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: feed})[0])


def feeds(model: ir.Model, symbols: dict[str, int] | None = None, seed: int = 1) -> list[Array]:
    """Random inputs for batches of 1 and 3; other symbolic sizes as in `symbols`."""
    rng = np.random.default_rng(seed)
    shape = dims(model.graph.inputs[0])
    assert shape is not None
    made = []
    for batch in (1, 3):
        sizes = {"N": batch, **(symbols or {})}
        made.append(rng.normal(size=[d if isinstance(d, int) else sizes[str(d)] for d in shape]).astype(np.float32))
    return made


def operators(model: ir.Model) -> list[str]:
    """The operators in order."""
    return [node.op_type for node in model.graph]


def check(
    rewrite: Callable[[ir.Model], int], model: ir.Model, symbols: dict[str, int] | None = None, tolerance: float = 1e-5
) -> int:
    """Applies a pass twice; asserts that outputs, border names and invariants hold, and that it is idempotent."""
    inputs = feeds(model, symbols)
    before = [run(model, feed) for feed in inputs]
    border = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    count = rewrite(model)
    verify(model)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == border
    for feed, expected in zip(inputs, before, strict=True):
        actual = run(model, feed)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(
            actual, expected, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(expected).max()))
        )
    assert rewrite(model) == 0, "the pass is not idempotent"
    return count
