"""Post-training quantization by NNCF on an ONNX file, with its defaults and the given images, one at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gate import Answers, Clock, peak_mib, versions


def quantize(model: Path, images: np.ndarray, result: Path, clock: Clock) -> None:
    """Reads the model, calibrates, writes; the parts go to the clock."""
    with clock.part("import"):
        import nncf
        import onnx
    with clock.part("read"):
        source = onnx.load(model)
    name = source.graph.input[0].name
    dataset = nncf.Dataset([{name: images[index : index + 1]} for index in range(len(images))])
    with clock.part("calibrate"):
        quantized = nncf.quantize(source, dataset, subset_size=len(images))
    with clock.part("write"):
        onnx.save(quantized, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="an ONNX file")
    parser.add_argument("--images", type=Path, required=True, help=".npy file, float32 [N, C, H, W]")
    parser.add_argument("--result", type=Path, required=True)
    given = parser.parse_args()
    answers, clock = Answers(), Clock()
    quantize(given.model, np.load(given.images), given.result, clock)
    answers.say(parts=clock.parts, peak_mib=peak_mib(), versions=versions("nncf", "onnx", "onnxruntime"))


if __name__ == "__main__":
    main()
