"""A training step of fullquant: `qat` (the student with fake-quantize) or `float` (the same without), one a batch.

Both go through the functions that a real run goes through; the float student is the graph that the teacher is too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from gate import Gate, versions
from images import image_batches
from torch_loop import perturb

from fullquant.auto_compression import stages
from fullquant.auto_compression.calibrate import calibrated
from fullquant.calibration.calibrator import observed_tensors
from fullquant.config import Config, load_config
from fullquant.data import Augment, ImageLoader, Preprocess, find_images
from fullquant.distributed import World, joined
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.readers import read_model
from fullquant.runtime.devices import prepare_runtime
from fullquant.runtime.executor import GraphModule
from fullquant.training.qat import Score

# More steps than anyone measures: no validation and no checkpoint comes between them.
_ENDLESS = 1_000_000
_CALIBRATION_IMAGES = 8
# Operators that go over their input element by element, as fake-quantize does: one kernel can do both.
_POINTWISE = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "Add", "Sub", "Mul", "Div", "Sigmoid"})

CONFIG = {
    "Distillation": {"loss": "soft_label"},
    "QuantAware": {"is_full_quantize": True, "calibration": {"observer": "min_max"}},
    "TrainConfig": {
        "train_iter": _ENDLESS,
        "eval_iter": _ENDLESS,
        "checkpoint_iter": _ENDLESS,
        "learning_rate": 1e-5,
        "optimizer_builder": {"optimizer": {"type": "Adam"}, "weight_decay": 0.0},
    },
}


class _GatedData:
    """In the place of TrainingData: batches as the coordinator asks for them."""

    def __init__(self, gate: Gate, batches: Any, facts: dict[str, Any]) -> None:
        self.gate, self.arrays, self.facts = gate, batches, facts

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        yield from self.gate.batches(self.arrays, **self.facts)
        sys.stderr.flush()
        os._exit(0)  # there is nothing to save, and of several processes none waits for the others


class _FromFiles:
    """In the place of a list of batches: the next one of a loader, whichever is asked for; the waiting counts."""

    def __init__(self, folder: str, batch: int, size: tuple[int, int], workers: int) -> None:
        self._loader = ImageLoader(
            find_images(folder, "train"), Preprocess(size), batch, augment=Augment(), shuffle=True, drop_last=True,
            workers=workers,
        )  # fmt: skip
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _index: int) -> np.ndarray:
        found = next(self._batches, None)
        if found is None:
            self._batches = iter(self._loader)
            found = next(self._batches)
        return found[0]


class _NoValidation:
    """The same score each time: the start is kept, and nothing is computed."""

    name, start = "nothing", None

    def score(self, simulator: object) -> Score:
        return Score(0.0)


def read(model: str) -> ir.Model:
    """The canonical graph of a model folder or file; `mobilenetv3_large` is exported from workers/mobilenetv3.py."""
    if model != "mobilenetv3_large":
        return prepare(read_model(model))
    import torch
    from mobilenetv3 import mobilenetv3_large

    with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            mobilenetv3_large(), (torch.zeros(2, 3, 224, 224),), str(path), input_names=["x"], dynamo=True,
            dynamic_shapes=({0: "n", 2: "h", 3: "w"},), external_data=False, verbose=False,
        )  # fmt: skip
        return prepare(read_model(path))


def student_of(variant: str, model: ir.Model, teacher: GraphModule, config: Config, images: np.ndarray) -> GraphModule:
    """The module that is trained: calibrated in a moment where it is the quantized one."""
    if variant == "float":
        return GraphModule(model).to(next(teacher.parameters()).device)
    placement = place(model, config.target(None), stages.placement_options(config))
    student = calibrated(
        model, teacher, placement, [images[:_CALIBRATION_IMAGES]], config.quantization.observer,
        correct=False, probabilities=False, progress=False,
    )  # fmt: skip
    return stages.finished(model, student).student


def work_of_a_step(model: ir.Model, teacher: GraphModule, config: Config, images: np.ndarray) -> dict[str, int]:
    """What physics asks for: multiplications of one forward pass, and elements that are fake-quantized in it.

    pointwise_elements: those of the activations that come from an operator of _POINTWISE.
    """
    import torch

    placement = place(model, config.target(None), stages.placement_options(config))
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.inference_mode():
        teacher(torch.from_numpy(images), tap=lambda name, tensor: shapes.update({name: tuple(tensor.shape)}))
    multiplications = 0
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and (weight := node.inputs[1].const_value) is not None:
            # Every element of the output takes a row of the weight: its size without the output channels.
            transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
            channels = weight.shape[0] if node.op_type == "Conv" or transposed else weight.shape[-1]
            per_output = weight.size // int(channels)
            multiplications += int(np.prod(shapes[str(node.outputs[0].name)])) * per_output
    pointwise = {str(v.name) for node in model.graph if node.op_type in _POINTWISE for v in node.outputs}
    elements = {name: int(np.prod(shapes[name])) for name in observed_tensors(model, placement) if name in shapes}
    weights = sum(
        int(model.graph.initializers[d.tensor].const_value.size) for d in placement if d.kind == "weight" and d.spec
    )
    return {
        "multiplications": multiplications,
        "activation_elements": sum(elements.values()),
        "pointwise_elements": sum(count for name, count in elements.items() if name in pointwise),
        "weight_elements": weights,
    }


def measure(given: argparse.Namespace, gate: Gate, world: World, device: str | None) -> None:
    """Set-up as in AutoCompression, then steps as the gate asks for them. Does not return."""
    config, place_of_work = load_config(CONFIG), prepare_runtime(device or "cpu")
    model = read(given.model)
    arrays = image_batches(given.batch, *given.size)
    teacher = GraphModule(model).to(place_of_work).eval()
    facts: dict[str, Any] = {"versions": versions("fullquant", "torch", "numpy", "numba")}
    facts["work"] = work_of_a_step(model, teacher, config, arrays[0])
    student = student_of(given.variant, model, teacher, config, arrays[0])
    perturb(student.weights.values())
    facts["fake_quantizers"] = len(student.fake_quantizers())
    plan = stages.TrainingPlan(_ENDLESS, None, 1.0, None, "", progress=False, world=world)
    from_files = given.images and _FromFiles(given.images, given.batch, tuple(given.size), given.workers)
    data: Any = _GatedData(gate, from_files or arrays, facts)
    validation: Any = _NoValidation()
    stages.train(model, teacher, student, data, validation, config, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=("float", "qat"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--images", metavar="DIR", help="JPEGs with a train_list.txt: batches come from ImageLoader")
    parser.add_argument("--workers", type=int, default=1, help="processes of that loader (%(default)s)")
    given = parser.parse_args()
    gate = Gate()
    with joined("cpu") as (world, device):
        measure(given, gate, world, device)
    raise SystemExit("the training came to an end by itself")


if __name__ == "__main__":
    main()
