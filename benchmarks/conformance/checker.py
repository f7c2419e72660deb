"""The checking side, run by fullquant's interpreter: an exported model goes through the whole product.

One JSON line in ({"folder": ..., "images": file, "height": h, "width": w}), one out, per model: each step with its
figures, and the first error with the step that it belongs to.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pixels import as_pixels

from fullquant.auto_compression.exporting import export
from fullquant.auto_compression.stages import QuantizedModel, finished, placement_options
from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.observers import MinMaxObserver
from fullquant.config import load_config
from fullquant.errors import FullquantError
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import place
from fullquant.placement.rules import LAYERS
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import Session, open_session
from fullquant.runtime.simulator import Simulator
from fullquant.writers.program_desc import write_paddle

Array = npt.NDArray[np.float32]
CALIBRATION = 8
#: From this difference between two float32 evaluations on, each is compared with float64.
EXACT = 1e-4
#: Images for a comparison of float numbers, and for the second form of a file: their error does not depend on how many.
FEW = 4


def _images(path: str, height: int, width: int, count: int) -> Array:
    import torch

    images = torch.from_numpy(np.load(path)[: CALIBRATION + count])
    resized = torch.nn.functional.interpolate(images, (height, width), mode="bilinear")
    return as_pixels(resized.numpy())  # type: ignore[no-any-return]


def _run(session: Session, images: Array, batch: int = 4) -> Array:
    (name,) = session.input_names
    parts = [session.run({name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts).astype(np.float32)


def _difference(reference: Array, other: Array) -> float:
    """Largest difference, relative to the range of the reference."""
    span = float(reference.max() - reference.min()) or 1.0
    return float(np.abs(reference - other).max()) / span


def _largest(reference: Array, others: Sequence[Array]) -> float:
    """The same of several; a NaN stays one."""
    return float(np.max([_difference(reference, other) for other in others]))


def _in_float64(model: Any, images: Array) -> Array:
    """Outputs of our float graph, computed in float64."""
    import torch

    module = GraphModule(model).eval().double()
    with torch.inference_mode():
        outputs: Array = module(torch.from_numpy(images.astype(np.float64))).numpy()
    return outputs


def _same(a: Array, b: Array) -> float:
    return float((a.reshape(len(a), -1).argmax(1) == b.reshape(len(b), -1).argmax(1)).mean())


class Check:
    """One model; `found` grows step by step, so that what was reached before an error is told."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.folder = Path(task["folder"])
        self.images = _images(task["images"], task["height"], task["width"], task["count"])
        self.found: dict[str, Any] = {"images": task["count"], "step_seconds": {}}
        self._step, self._since = "", time.monotonic()

    @property
    def step(self) -> str:
        """What is done now, for errors; setting it books the seconds of the step before."""
        return self._step

    @step.setter
    def step(self, name: str) -> None:
        now = time.monotonic()
        if self._step:
            self.found["step_seconds"][self._step] = round(now - self._since, 1)
        self._step, self._since = name, now

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        try:
            self._all()
        except FullquantError as error:
            self.found["error"] = f"{self.step}: {str(error).replace(str(self.folder), '')[:400]}"
        except Exception as error:  # anything else is a defect of ours, and is told as one
            self.found["error"] = f"{self.step}: DEFECT {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.step = ""
        self.found["seconds"] = round(time.monotonic() - began, 1)
        self.found["peak_gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
        return self.found

    def _all(self) -> None:
        self.step = "read"
        source = read_model(self.folder)
        self.step = "prepare"
        model = prepare(source)
        self.found["reads"] = True
        test = self.images[CALIBRATION:]
        self.step = "float"
        paddle = _run(open_session(self.folder, "paddle"), test)
        few = test[:FEW]
        mine = _run(open_session(model, "onnxruntime"), few)
        self.found["distinct"] = len(set(paddle.reshape(len(paddle), -1).argmax(1).tolist()))
        teacher = GraphModule(model).eval()
        floats = {"float": [mine], "executor": [_predict(teacher, few)]}
        self.step = "round trip"
        floats["round_trip"] = self._round_trip(model, few)
        for kind, outputs in floats.items():
            self.found[f"{kind}_difference"] = _largest(paddle[:FEW], outputs)
        if any(not self.found[f"{kind}_difference"] <= EXACT for kind in floats):  # NaN too
            self.step = "float64"
            everything = [paddle[:FEW], *(outputs for kind in floats.values() for outputs in kind)]
            self.found["float64_difference"] = _largest(_in_float64(model, few), everything)
        self.step = "quantize"
        quantized = self._quantized(model, teacher)
        simulated = _predict(quantized.student, test)
        self.found["agreement"] = _same(paddle, simulated)
        self.step = "export"
        files = export(quantized, self.folder / "int8", ("inference.pdmodel", "inference.pdiparams"))
        self.found["exports"] = True
        for name, path, engine, optimize in (
            ("onnxruntime_plain", files.onnx, "onnxruntime", False), ("onnxruntime", files.onnx, "onnxruntime", True),
            ("paddle", files.paddle_model, "paddle", True),
            ("paddle_json", files.paddle_json, "paddle", True),
        ):  # fmt: skip
            self.step = f"run {name}"
            if path is None:
                continue
            compared = few if name == "paddle_json" else test  # the same operators as "paddle", in Paddle 3's form
            outputs = _run(open_session(path, engine, optimize=optimize), compared)
            self.found[f"{name}_difference"] = _difference(simulated[: len(outputs)], outputs)
            self.found[f"{name}_same"] = _same(simulated[: len(outputs)], outputs)

    def _round_trip(self, model: Any, test: Array) -> list[Array]:
        """Outputs of the float graph, written as a Paddle program in both forms."""
        folder = self.folder / "float"
        folder.mkdir()
        program, params, program3 = (folder / f"inference.{end}" for end in ("pdmodel", "pdiparams", "json"))
        try:
            write_paddle(model, None, {}, program, params, json_path=program3)
            return [_run(open_session(path, "paddle"), test) for path in (program, program3)]
        finally:
            shutil.rmtree(folder)

    def _quantized(self, model: Any, teacher: GraphModule) -> QuantizedModel:
        config = load_config({"QuantPost": {}})
        placement = place(model, config.target(None), placement_options(config))
        floats = _float_tensors(model, placement)
        self.found["full_integer"] = not floats
        self.found["float_tensors"] = floats[:20]
        calibration = [self.images[i : i + 4] for i in range(0, CALIBRATION, 4)]
        observers = observe_activations(teacher, model, placement, calibration, MinMaxObserver)
        activations = observed_qparams(observers, placement)
        qparams = activations | calibrate_weights(model, placement, activations)
        student = GraphModule(model, placement=placement, qparams=qparams).eval()
        return finished(model, student)


def _float_tensors(model: Any, placement: Placement) -> list[str]:
    """Tensors between operators and weights of layers without a scale; a bound or a norm's parameter is neither."""
    weights = {str(node.inputs[1].name) for node in model.graph if node.op_type in LAYERS}
    return [d.tensor for d in placement if d.spec is None and (d.kind == "activation" or d.tensor in weights)]


def _predict(module: GraphModule, images: Array, batch: int = 4) -> Array:
    simulator = Simulator(module)
    return np.concatenate([simulator.predict(images[i : i + batch]) for i in range(0, len(images), batch)])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        task = json.loads(line)
        answer = Check(task).run()
        if not task.get("keep"):
            shutil.rmtree(Path(task["folder"]) / "int8", ignore_errors=True)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
