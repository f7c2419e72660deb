"""Classifiers in plain PyTorch become integers throughout, and every written file gives the simulation's classes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.architectures.convolutional import CONVOLUTIONAL
from tests.architectures.line import CALIBRATION, RUNTIMES, Outcome, fit_classifier, labelled, through, train_a_little
from tests.architectures.test_architectures import SIZE, export, trained_looking
from tests.architectures.transformers import TRANSFORMERS

ALL: dict[str, Callable[[], nn.Module]] = {**CONVOLUTIONAL, **TRANSFORMERS}
#: What a random attention tells a class token of an image is too little to classify by.
CLASS_TOKENS = ("vit", "deit")
TEST = 100

pytestmark = pytest.mark.skipif(importlib.util.find_spec("paddle") is None, reason="Paddle Inference runs the files")


def outcome(name: str, folder: Path, exporter: str) -> Outcome:
    model = trained_looking(ALL[name])
    if name in CLASS_TOKENS:
        train_a_little(model, SIZE)
    else:
        fit_classifier(model, SIZE)
    export(model, folder / "m.onnx", exporter)
    images, labels = labelled(TEST, SIZE, 4)
    with torch.no_grad():
        logits = model(images)
    assert (logits.argmax(1) == labels).float().mean() > 0.8, "the classifier does not tell the classes apart"
    calibration = labelled(CALIBRATION, SIZE, 3)[0].numpy()
    return through(folder / "m.onnx", folder / "int8", calibration, images.numpy(), logits=logits.numpy())


def check(found: Outcome, *, to_the_bit: bool = False) -> None:
    """to_the_bit: the logits are the simulation's numbers, which LayerNormalization and Softmax do not promise."""
    assert found.float_tensors == []
    assert found.float_difference < 1e-4
    assert found.kept >= 0.85, str(found)
    assert set(found.agreement) == set(RUNTIMES)
    for runtime, agreement in found.agreement.items():
        assert agreement >= 0.99, str(found)
        if to_the_bit and runtime.startswith("onnxruntime"):
            assert found.difference[runtime] < 1e-5, str(found)


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet_v2", "convnext"])
def test_the_whole_line(name: str, tmp_path: Path) -> None:
    check(outcome(name, tmp_path, "torchscript"), to_the_bit=name in CONVOLUTIONAL)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ALL)
def test_the_whole_line_of_every_architecture(name: str, exporter: str, tmp_path: Path) -> None:
    found = outcome(name, tmp_path, exporter)
    print(f"{name} {exporter}: {found}")
    check(found, to_the_bit=name in CONVOLUTIONAL)


def test_the_check_fails_for_files_of_another_model(tmp_path: Path) -> None:
    """A wrong file, a float tensor and other numbers each fail the check."""
    right = Outcome([], 1.0, 0.0, dict.fromkeys(RUNTIMES, 1.0), dict.fromkeys(RUNTIMES, 0.0))
    check(right, to_the_bit=True)
    for wrong in (
        Outcome(["t"], 1.0, 0.0, right.agreement), Outcome([], 1.0, 0.1, right.agreement),
        Outcome([], 0.1, 0.0, right.agreement), Outcome([], 1.0, 0.0, {**right.agreement, "paddle json": 0.98}),
        Outcome([], 1.0, 0.0, {**right.agreement, "onnxruntime": 0.98}), Outcome([], 1.0, 0.0),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(wrong)
    one_step = Outcome([], 1.0, 0.0, right.agreement, {**right.difference, "onnxruntime": 0.004})
    check(one_step)
    with pytest.raises(AssertionError):
        check(one_step, to_the_bit=True)
    model = trained_looking(ALL["resnet"])
    fit_classifier(model, SIZE)
    export(model, tmp_path / "m.onnx", "torchscript")
    images = labelled(TEST, SIZE, 4)[0].numpy()
    found = through(tmp_path / "m.onnx", tmp_path / "int8", images[:CALIBRATION] * 0.01, images,
                    logits=np.zeros((TEST, 10), np.float32) + np.arange(10))  # fmt: skip
    assert found.kept < 0.85, "scales of other images give other classes"
    assert found.float_difference > 1e-4
