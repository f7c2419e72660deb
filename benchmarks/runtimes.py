"""Latency of our int8 files beside those of ONNX Runtime's own quantizer and of NNCF, in ONNX Runtime and OpenVINO.

    python benchmarks/runtimes.py --json out/runtimes.json
    python benchmarks/runtimes.py --only efficientnet_lite0_imagenet --threads 2 --batch 8

ONNX Runtime's own: onnxruntime.quantization.quantize_static, QDQ, uint8 activations, int8 weights per channel. NNCF:
nncf.quantize with its defaults on the same ONNX file, in the environment of README.md, where that is there. Scales come
from the same random images on all sides: they do not change the speed. OpenVINO is measured where it is
installed (pip install openvino); its float32 hint is set, so that no layer runs in bfloat16. All files are opened at
once and run in turn, a few times each.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from alternate import Series, Variant, run_once
from models import ASSETS
from results import Report, add_common, ratio

from fullquant.auto_compression import stages
from fullquant.auto_compression.calibrate import calibrated
from fullquant.config import load_config
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.placement.target import find_target
from fullquant.readers import read_model
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import open_session
from fullquant.writers.onnx_qdq import write_float_onnx, write_onnx

sys.path.insert(0, str(Path(__file__).parent / "workers"))
from images import image_batch

_SIZES = {
    "efficientnet_lite0_imagenet": (224, 224), "mobilenetv3_large_cifar10": (64, 64),
    "resnet20_cifar10": (32, 32), "mobilenetv3_small_ocr_cls": (48, 192),
}  # fmt: skip
_TARGETS = ("paddle_lite", "onnxruntime", "openvino")
_IN_A_ROW, _WARM = 3, 5


def ours(model: ir.Model, target: str, images: np.ndarray, path: Path) -> None:
    """Our QDQ file for a target, with the scales of the largest values."""
    config = load_config({"QuantAware": {"target": target, "calibration": {"observer": "min_max"}}})
    placement = place(model, target, stages.placement_options(config))
    teacher = GraphModule(model).eval()
    student = calibrated(
        model, teacher, placement, [images], config.quantization.observer, correct=False, probabilities=False,
        progress=False,
    )  # fmt: skip
    made = stages.finished(model, student)
    write_onnx(made.model, made.placement, made.qparams, path, runtime=find_target(target).onnx_layout)


def onnxruntime_own(source: Path, images: np.ndarray, path: Path) -> None:
    """What ONNX Runtime's quantizer makes of the float file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class _Once(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": images[k : k + 1]} for k in range(len(images))]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        str(source), str(path), _Once(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def nncf_own(source: Path, images: np.ndarray, path: Path, python: str) -> None:
    """What NNCF makes of the float file."""
    kept = path.with_suffix(".npy")
    np.save(kept, images)
    arguments = ["--model", str(source), "--images", str(kept), "--result", str(path)]
    run_once(Variant("nncf", "calibrate_nncf.py", arguments, python))


def in_turn(
    files: Mapping[str, Path], engine: str, images: np.ndarray, threads: int, repeats: int
) -> dict[str, Series]:
    """{name: seconds of each run}."""
    sessions = {name: open_session(path, engine, optimize=True, threads=threads) for name, path in files.items()}
    found = {name: Series() for name in files}
    for session in sessions.values():
        for _ in range(_WARM):
            session.run({session.input_names[0]: images})
    for _ in range(-(-repeats // _IN_A_ROW)):
        for name, session in sessions.items():
            for _ in range(_IN_A_ROW):
                began = time.perf_counter()
                session.run({session.input_names[0]: images})
                found[name].seconds.append(time.perf_counter() - began)
    return found


def measure(name: str, given: argparse.Namespace, report: Report) -> None:
    """One network in each runtime."""
    size = _SIZES[name]
    model = prepare(read_model(ASSETS / "models" / name))
    calibration, images = image_batch(16, *size), image_batch(given.batch, *size, seed=1)
    with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as place_of_files:
        folder = Path(place_of_files)
        files = {"float": folder / "float.onnx"}
        write_float_onnx(model, files["float"])
        for target in _TARGETS:
            files[f"ours, {target}"] = folder / f"{target}.onnx"
            ours(model, target, calibration, files[f"ours, {target}"])
        files["onnxruntime's own"] = folder / "own.onnx"
        onnxruntime_own(files["float"], calibration, files["onnxruntime's own"])
        if Path(given.python).exists():
            files["NNCF"] = folder / "nncf.onnx"
            nncf_own(files["float"], calibration, files["NNCF"], given.python)
        else:
            print(f"{given.python} does not exist: NNCF is left out", file=sys.stderr)
        for engine in ("onnxruntime", "openvino"):
            if importlib.util.find_spec(engine) is None:
                print(f"{engine} is not installed: left out", file=sys.stderr)
                continue
            found = in_turn(files, engine, images, given.threads, given.repeats)
            best = f"ours, {engine}"
            ratios = {
                f"{best} / float": ratio(found, best, "float"),
                f"{best} / onnxruntime's own": ratio(found, best, "onnxruntime's own"),
                "ours, default target / float": ratio(found, "ours, paddle_lite", "float"),
            }
            if "NNCF" in files:
                ratios[f"{best} / NNCF"] = ratio(found, best, "NNCF")
            report.add(f"{name} in {engine}, batch {given.batch}", found, ratios, engine=engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_SIZES, help="one network instead of all")
    parser.add_argument("--python", default="/tmp/nncf/bin/python", help="interpreter that has nncf (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images in a run (%(default)s)")
    add_common(parser, repeats=150)
    given = parser.parse_args()
    report = Report("runtimes", given)
    for name in [given.only] if given.only else _SIZES:
        measure(name, given, report)


if __name__ == "__main__":
    main()
