"""Post-training quantization by fullquant, as `fullquant quantize --ptq` does it, without the verification."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
from gate import Answers, Clock, peak_mib, versions

_BATCH = 32  # what TrainingData.calibration reads from an image folder


class _Diary(logging.Handler):
    """The log of the run with the seconds since its beginning: where the calibration spends its time."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []
        self._began = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.perf_counter() - self._began, record.getMessage()))


def quantize(model_dir: Path, images: np.ndarray, save_dir: Path, target: str | None, clock: Clock) -> None:
    """Reads the model, calibrates, writes; the parts go to the clock."""
    with clock.part("import"):
        from fullquant.auto_compression import stages
        from fullquant.auto_compression.calibrate import calibrated
        from fullquant.auto_compression.exporting import export, paddle_names
        from fullquant.auto_compression.from_config import default_config
        from fullquant.passes import prepare
        from fullquant.placement.place import place
        from fullquant.readers import read_model
        from fullquant.runtime.devices import prepare_runtime
        from fullquant.runtime.executor import GraphModule
    config = default_config(model_dir, save_dir, ptq=True)
    with clock.part("read"):
        device = prepare_runtime("cpu")
        model = prepare(read_model(model_dir))
        placement = place(model, config.target(target), stages.placement_options(config))
        teacher = GraphModule(model).to(device).eval()
    with clock.part("calibrate"):
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        student = calibrated(
            model, teacher, placement, batches, config.quantization.observer,
            correct=config.quantization.bias_correction, probabilities=False, progress=False,
        )  # fmt: skip
    with clock.part("write"):
        export(stages.finished(model, student), save_dir, paddle_names(None, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help=".npy file, float32 [N, C, H, W]")
    parser.add_argument("--save-dir", type=Path, required=True)
    parser.add_argument("--target")
    given = parser.parse_args()
    answers, clock, diary = Answers(), Clock(), _Diary()
    log = logging.getLogger("fullquant")
    log.setLevel(logging.INFO)
    log.addHandler(diary)
    quantize(given.model, np.load(given.images), given.save_dir, given.target, clock)
    found = versions("fullquant", "torch")
    answers.say(parts=clock.parts, peak_mib=peak_mib(), versions=found, log=diary.lines)


if __name__ == "__main__":
    main()
