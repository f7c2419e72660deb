"""The whole line for one small classifier: random features, a fitted classifier, int8, every file in its runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fullquant.auto_compression.exporting import export
from fullquant.auto_compression.stages import QuantizedModel, finished, placement_options
from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.observers import MinMaxObserver
from fullquant.config import load_config
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import place
from fullquant.placement.rules import LAYERS
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import open_session
from fullquant.runtime.simulator import Simulator

Array = npt.NDArray[np.float32]
CLASSES = 10
CALIBRATION = 16
#: name in a report -> (file of ExportedFiles, engine, optimised)
RUNTIMES = {
    "onnxruntime plain": ("onnx", "onnxruntime", False),
    "onnxruntime": ("onnx", "onnxruntime", True),
    "paddle": ("paddle_model", "paddle", True),
    "paddle json": ("paddle_json", "paddle", True),
}


def smooth(count: int, size: int, seed: int) -> torch.Tensor:
    """Noise of several sizes on top of each other, as images are smooth: [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, 3, side, side, generator=generator) for side in (4, 8, 16, 32) if side <= size]
    return sum((nn.functional.interpolate(p, (size, size), mode="bilinear") for p in parts), torch.zeros(()))


def labelled(count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, labels): an image of class k is the k-th prototype with noise of its own on top."""
    labels = torch.arange(count) % CLASSES
    return smooth(CLASSES, size, 1000)[labels] + 0.5 * smooth(count, size, seed), labels


def fit_classifier(model: nn.Module, size: int) -> None:
    """Ridge regression from the features to one-hot vectors in the last layer: random ones give logits that tie.

    W = (F^T F + a I)^-1 F^T Y over the centred features F of 200 images, b = mean(Y) - W mean(F), both scaled to logits
    of a standard deviation of 2.
    """
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES][-1]
    images, labels = labelled(200, size, 1)
    kept: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(images)
        hook.remove()
        features = kept[0].double()
        mean = features.mean(0)
        centred = features - mean
        target = nn.functional.one_hot(labels, CLASSES).double() - 1 / CLASSES
        gram = centred.T @ centred
        ridge = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
        weight = torch.linalg.solve(ridge, centred.T @ target).T
        scale = 2 / (centred @ weight.T).std()
        head.weight.copy_(weight * scale)
        head.bias.copy_(-(weight @ mean) * scale)


def train_a_little(model: nn.Module, size: int, steps: int = 60) -> None:
    """A few steps of Adam on classes of images, for models whose random features hardly depend on the image."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(steps):
        images, labels = labelled(60, size, 100 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()


@dataclass
class Outcome:
    """What was seen. kept: top-1 agreement float/simulated; agreement: the same, simulated/exported.

    difference: largest one, simulated/exported, relative to the range of the simulation; float_difference: the graph
    that was read against `logits`, likewise.
    """

    float_tensors: list[str]
    kept: float
    float_difference: float
    agreement: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{n} {self.agreement[n]:.3f} (difference {self.difference.get(n, 0.0):.3f})" for n in self.agreement]
        return f"float {self.float_tensors}; float/simulated {self.kept:.3f}; " + "; ".join(rows)


def float_tensors(model: object, placement: Placement) -> list[str]:
    """Tensors between operators, and weights of layers, without a scale."""
    weights = {str(node.inputs[1].name) for node in model.graph if node.op_type in LAYERS}  # type: ignore[attr-defined]
    return [d.tensor for d in placement if d.spec is None and (d.kind == "activation" or d.tensor in weights)]


def quantized(
    path: Path, calibration: Array, target: str | None = None
) -> tuple[QuantizedModel, GraphModule, list[str]]:
    """(the integer model, the float one, what has no scale), with the settings that a configuration has by default."""
    config = load_config({"QuantPost": {}})
    model = prepare(read_model(path))
    placement = place(model, config.target(target), placement_options(config))
    teacher = GraphModule(model).eval()
    step = 8 if calibration.shape[-1] <= 96 else 4
    batches = [calibration[i : i + step] for i in range(0, len(calibration), step)]
    activations = observed_qparams(observe_activations(teacher, model, placement, batches, MinMaxObserver), placement)
    qparams = activations | calibrate_weights(model, placement, activations)
    student = GraphModule(model, placement=placement, qparams=qparams).eval()
    return finished(model, student), teacher, float_tensors(model, placement)


def through(path: Path, folder: Path, calibration: Array, test: Array, *, logits: Array, batch: int = 20) -> Outcome:
    """Reads, quantizes, exports and runs the model at `path`; test images are compared in batches of `batch`.

    logits: what the source framework computes for the test images.
    """
    integer, teacher, floats = quantized(path, calibration)

    def run(predict: object) -> Array:
        return np.concatenate([predict(test[i : i + batch]) for i in range(0, len(test), batch)])  # type: ignore[operator]

    simulated = run(Simulator(integer.student).predict)
    plain = run(Simulator(teacher).predict)
    found = Outcome(floats, _same(plain, simulated), float(np.abs(plain - logits).max() / np.ptp(logits)))
    files = export(integer, folder, ("inference.pdmodel", "inference.pdiparams"))
    for name, (which, engine, optimize) in RUNTIMES.items():
        session = open_session(getattr(files, which), engine, optimize=optimize)
        (fed,) = session.input_names
        outputs = run(lambda images, s=session, f=fed: s.run({f: images})[0])
        found.agreement[name] = _same(simulated, outputs)
        found.difference[name] = float(np.abs(outputs - simulated).max() / np.ptp(simulated))
    return found


def _same(a: Array, b: Array) -> float:
    return float((a.argmax(1) == b.argmax(1)).mean())
