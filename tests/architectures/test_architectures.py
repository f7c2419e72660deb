"""Classifiers in plain PyTorch, by both of its exporters: they are read, canonical, and give the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from tests.architectures.convolutional import CONVOLUTIONAL
from tests.architectures.transformers import TRANSFORMERS
from tests.readers.onnx_run import run

ALL: dict[str, Callable[[], nn.Module]] = {**CONVOLUTIONAL, **TRANSFORMERS}
SIZE = 32
#: What no canonical graph of these holds: parts of functions that have an operator, and arithmetic on shapes.
# Shape stays in one form alone: the batch that a class token is repeated for.
PARTS = {"Erf", "Tanh", "Pow", "Sqrt", "Size", "Where", "Cast", "InstanceNormalization", "Exp", "Softplus",
         "BatchNormalization", "Dropout", "Identity", "Constant"}  # fmt: skip


def image_like(count: int, seed: int) -> torch.Tensor:
    """Noise of several sizes on top of each other: smooth, as images are."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, 3, size, size, generator=generator) for size in (4, 8, 16, 32)]
    return sum((nn.functional.interpolate(p, (SIZE, SIZE), mode="bilinear") for p in parts), torch.zeros(()))


def trained_looking(build: Callable[[], nn.Module]) -> nn.Module:
    """Random weights, normalizations that are not neutral, statistics of batches."""
    torch.manual_seed(0)
    model = build().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for seed in range(3):
            model(image_like(8, seed))
    return model.eval()


def export(model: nn.Module, path: Path, exporter: str, opset: int | None = None, *, dynamic: bool = True) -> None:
    """Writes the model by PyTorch's exporter "torchscript" or "dynamo"."""
    names = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None
            torch.onnx.export(
                model, (image_like(2 if dynamic else 1, 9),), path, dynamo=False, opset_version=opset or 17,
                dynamic_axes=axes, **names,
            )  # fmt: skip
        else:
            shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
            torch.onnx.export(
                model, (image_like(2 if dynamic else 1, 9),), path, dynamo=True, opset_version=opset or 18,
                dynamic_shapes=shapes, verbose=False, external_data=False, **names,
            )  # fmt: skip


def canonical(model: nn.Module, path: Path) -> ir.Model:
    """The graph that is read from the file, compared with the model itself in ONNX Runtime and in PyTorch."""
    graph = prepare(read_model(path))
    place(graph, "paddle_lite")
    images = image_like(3, 7)
    with torch.no_grad():
        expected = model(images).numpy()
        simulated = GraphModule(graph).eval()(images).numpy()
    tolerance = 1e-4 * float(np.ptp(expected))
    np.testing.assert_allclose(run(graph, images.numpy()), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(simulated, expected, rtol=0, atol=tolerance)
    assert not PARTS & {node.op_type for node in graph.graph}
    assert not {node.op_type for node in graph.graph} & {"Shape", "Expand"}, "a class token is an addition"
    return graph


@pytest.mark.parametrize("name", ALL)
def test_torchscript(name: str, tmp_path: Path) -> None:
    model = trained_looking(ALL[name])
    export(model, tmp_path / "m.onnx", "torchscript")
    canonical(model, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_dynamo(name: str, tmp_path: Path) -> None:
    model = trained_looking(ALL[name])
    export(model, tmp_path / "m.onnx", "dynamo")
    canonical(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21])
@pytest.mark.parametrize("name", ["mobilenet_v3", "convnext", "deit"])
def test_operator_sets(name: str, opset: int, tmp_path: Path) -> None:
    model = trained_looking(ALL[name])
    path = tmp_path / "m.onnx"
    export(model, path, "torchscript", min(opset, 20))
    if opset > 20:  # beyond what this exporter writes
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    assert onnx.load(path).opset_import[0].version == opset
    canonical(model, path)
