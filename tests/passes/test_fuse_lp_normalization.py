"""Vectors divided by their length, as exporters write F.normalize."""

from __future__ import annotations

import numpy as np
import pytest

from fullquant.passes.fuse_lp_normalization import fuse_lp_normalization
from fullquant.passes.infer_shapes import infer_shapes
from tests.graph.toy_models import check, operators, parse

LAST, EPSILON = np.int64([-1]), np.float32(1e-12)
BODY = "n = ReduceL2 <keepdims = 1> (x, last)  "


@pytest.mark.parametrize(
    "tail",
    ["c = Clip(n, low)  y = Div(x, c)", "c = Max(n, low)  y = Div(x, c)", "y = Div(x, n)",
     "c = Clip(n, low)  e = Expand(c, shape)  y = Div(x, e)"],
)  # fmt: skip
def test_each_form_becomes_one_operator(tail: str) -> None:
    constants = {"low": EPSILON} if "low" in tail else {}
    constants |= {"shape": np.int64([1, 4, 6])} if "shape" in tail else {}
    model = parse(f"g (float[N,4,6] x) => (float[N,4,6] y) {{ {BODY}{tail} }}", last=LAST, **constants)
    infer_shapes(model)
    assert check(fuse_lp_normalization, model) == 1
    assert operators(model) == ["LpNormalization"]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (f"{BODY}c = Clip(n, low)  y = Div(x, c)", {"last": LAST, "low": np.float32(0.5)}),  # a bound that acts
        (f"{BODY}a = Relu(x)  y = Div(a, n)", {"last": LAST}),  # of another vector
        (f"{BODY}y = Div(x, n)", {"last": np.int64([1, 2])}),  # over two axes
        ("n = ReduceL1 <keepdims = 1> (x, last)  y = Div(x, n)", {"last": LAST}),
    ],
)  # fmt: skip
def test_what_is_another_function_stays(body: str, constants: dict[str, np.ndarray]) -> None:
    model = parse(f"g (float[N,4,6] x) => (float[N,4,6] y) {{ {body} }}", **constants)
    infer_shapes(model)
    assert check(fuse_lp_normalization, model) == 0


def test_a_vector_of_zeros_gives_zeros() -> None:
    import onnx_ir as ir
    import onnxruntime
    import torch

    from fullquant.runtime.executor import GraphModule

    model = parse(f"g (float[N,4,6] x) => (float[N,4,6] y) {{ {BODY}c = Clip(n, low)  y = Div(x, c) }}", last=LAST,
                  low=EPSILON)  # fmt: skip
    infer_shapes(model)
    fuse_lp_normalization(model)
    x = np.zeros((1, 4, 6), np.float32)
    x[0, 1] = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)
    np.testing.assert_allclose(GraphModule(model)(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-6)
