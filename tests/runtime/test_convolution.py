"""Convolutions with uneven padding, and with the activation behind them in one kernel, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fullquant.runtime.executor import GraphModule
from tests.graphs import graph, run_onnxruntime

RNG = np.random.default_rng(3)


def _model(activation: str, pads: list[int], groups: int):
    weight = RNG.normal(0, 0.4, (8, 8 // groups, 3, 3)).astype(np.float32)
    bias = RNG.normal(0, 1, 8).astype(np.float32)
    last = [activation, ["c", "low", "high"] if activation == "Clip" else ["c"], ["y"], {}]
    nodes = [
        ("Conv", ["x", "w", "b"], ["c"], {"pads": pads, "strides": [2, 2], "group": groups, "kernel_shape": [3, 3]}),
        tuple(last),
    ]
    constants = {"w": weight, "b": bias, "low": np.float32(-0.5), "high": np.float32(1.5)}
    used = {name: value for name, value in constants.items() if name in ("w", "b") or activation == "Clip"}
    return graph(nodes, used, input_shape=("N", 8, 12, 10))


@pytest.mark.parametrize("activation", ["Relu", "Clip", "HardSwish", "HardSigmoid"])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("groups", [1, 8])
def test_with_and_without_gradients_it_is_the_sum_of_onnx_runtime(activation, pads, groups):
    model = _model(activation, pads, groups)
    images = RNG.normal(0, 2, (3, 8, 12, 10)).astype(np.float32)
    expected = run_onnxruntime(model, images)
    module = GraphModule(model)
    with torch.inference_mode():
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), expected, atol=2e-5)
    result = module(torch.from_numpy(images))
    np.testing.assert_allclose(result.detach().numpy(), expected, atol=2e-5)
    tapped = {}
    module(torch.from_numpy(images), tap=lambda name, tensor: tapped.update({name: tensor}))
    assert "c" in tapped


def test_a_clamp_in_place_leaves_the_gradient_as_it_is():
    model = _model("Relu", [1, 1, 1, 1], 1)
    module, images = GraphModule(model), torch.from_numpy(RNG.normal(0, 2, (2, 8, 12, 10)).astype(np.float32))
    module(images).square().sum().backward()
    fused = {name: p.grad.clone() for name, p in module.weights.items()}
    module.zero_grad()
    separate = module(images, tap=lambda *_: None)
    separate.square().sum().backward()
    for name, p in module.weights.items():
        torch.testing.assert_close(p.grad, fused[name])
