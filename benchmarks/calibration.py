"""Post-training quantization of EfficientNet-Lite0 by fullquant and by NNCF on the same graph and images.

    python benchmarks/calibration.py --json out/calibration.json

NNCF gets the graph as the ONNX file that our reader and passes make of the Paddle model. Both get the same images from
memory; reading them from JPEG files is measured on its own. Each run is a process of its own, and the two take turns.
Then the files of the last run are compared with the float model on the validation images in ONNX Runtime: as they are
written (optimisations off), and as this processor computes them (on).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
from alternate import Series, Variant, run_once
from models import ASSETS
from results import Report, add_common, ratio
from rich.console import Console
from rich.table import Table

from fullquant.auto_compression.loaders import train_loader, validation_loader
from fullquant.config import Config, load_config
from fullquant.evaluation.accuracy import Accuracy, AccuracyMeter
from fullquant.passes import prepare
from fullquant.readers import read_model
from fullquant.runtime.sessions import Session, open_session

_BATCH = 32
_FLOAT = "float"


def settings(model: Path, data: Path) -> Config:
    """How images become the input of EfficientNet-Lite0 (configs/efficientnet_lite0_imagenet_ptq.yaml)."""
    section = {
        "model_dir": str(model), "data_dir": str(data), "batch_size": _BATCH, "img_size": 224, "resize_size": 227,
        "scale": 1.0, "mean": [127] * 3, "std": [128] * 3, "workers": 0,
    }  # fmt: skip
    return load_config({"Global": section, "QuantPost": {}})


def write_images(config: Config, count: int, path: Path) -> float:
    """`count` training images, spread over the list, as one array; returns the seconds that reading them took."""
    began = time.perf_counter()
    with train_loader(config.global_section) as loader:
        chosen = loader.images.spread(count)
        with loader.over(chosen, min(_BATCH, count)) as plain:
            images = np.concatenate([np.array(batch) for batch, _ in plain])
    seconds = time.perf_counter() - began
    np.save(path, images)
    return seconds


def variants(given: argparse.Namespace, folder: Path) -> list[Variant]:
    """The two programs, and where they write."""
    images = ["--images", str(folder / "images.npy")]
    target = ["--target", given.target] if given.target else []
    ours = ["--model", str(given.model), "--save-dir", str(folder / "ours"), *images, *target]
    nncf = ["--model", str(folder / "float.onnx"), "--result", str(folder / "nncf.onnx"), *images]
    return [
        Variant("fullquant", "calibrate_ours.py", ours),
        Variant("nncf", "calibrate_nncf.py", nncf, given.python),
    ]


def in_turn(programs: list[Variant], repeats: int, threads: int) -> dict[str, Series]:
    """Each program `repeats` times; the parts of a run are medians."""
    found = {program.name: Series() for program in programs}
    parts: dict[str, list[dict[str, float]]] = {program.name: [] for program in programs}
    for _ in range(repeats):
        for program in programs:
            answer = run_once(program, threads)
            series = found[program.name]
            series.seconds.append(answer["seconds"])
            series.peak_mib = answer["peak_mib"]
            series.facts |= {key: answer[key] for key in ("versions", "log") if key in answer}
            parts[program.name].append(answer["parts"])
    for name, runs in parts.items():
        found[name].facts["parts"] = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    return found


def agreement(folder: Path, config: Config, images: int, threads: int) -> dict[str, Accuracy]:
    """Top-1 and agreement with the float model of the files just written, and of the float model."""
    files = {"fullquant": folder / "ours" / "model_int8.onnx", "nncf": folder / "nncf.onnx"}
    sessions: dict[str, Session] = {_FLOAT: open_session(folder / "float.onnx", "onnxruntime", threads=threads)}
    for name, path in files.items():
        for mode, optimize in (("plain", False), ("optimised", True)):
            sessions[f"{name}, {mode}"] = open_session(path, "onnxruntime", optimize=optimize, threads=threads)
    meters = {name: AccuracyMeter(engine=name) for name in sessions}
    with validation_loader(config.global_section, images) as loader:
        for batch, labels in loader:
            outputs = {name: session.run({session.input_names[0]: batch})[0] for name, session in sessions.items()}
            for name, meter in meters.items():
                meter.update(outputs[name], labels, outputs[_FLOAT])
    return {name: meter.result() for name, meter in meters.items()}


def show_parts(found: dict[str, Series]) -> None:
    """Seconds of each part."""
    table = Table(title="parts, s", title_justify="left")
    table.add_column("program")
    names = list(dict.fromkeys(part for series in found.values() for part in series.facts["parts"]))
    for name in names:
        table.add_column(name, justify="right")
    for program, series in found.items():
        table.add_row(program, *(f"{series.facts['parts'][name]:.2f}" for name in names))
    console = Console(width=110)
    console.print(table)
    for seconds, message in found["fullquant"].facts["log"]:
        console.print(f"{seconds:8.1f} s  {message}", highlight=False, markup=False)


def show_agreement(rows: dict[str, Accuracy]) -> None:
    """Percent."""
    table = Table(title="ONNX Runtime, percent", title_justify="left")
    table.add_column("file")
    for column in ("top-1", "agreement with float", "mean KL"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, f"{100 * row.top1:.2f}", f"{100 * row.agreement:.2f}", f"{row.mean_kl:.4f}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="/tmp/nncf/bin/python", help="interpreter that has nncf (%(default)s)")
    parser.add_argument("--model", type=Path, default=ASSETS / "models" / "efficientnet_lite0_imagenet")
    parser.add_argument("--data", type=Path, default=ASSETS / "imagenet_mini")
    parser.add_argument("--images", type=int, default=300, help="calibration images (%(default)s)")
    parser.add_argument("--validation-images", type=int, default=800, help="0 leaves the comparison out (%(default)s)")
    parser.add_argument("--target", help="fullquant's target (that of the command, paddle_lite)")
    add_common(parser, repeats=3)
    given = parser.parse_args()
    if not Path(given.python).exists():
        raise SystemExit(f"{given.python} does not exist: see benchmarks/README.md, or name another with --python")
    report, config = Report("calibration", given), settings(given.model, given.data)
    with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as name:
        folder = Path(name)
        seconds = write_images(config, given.images, folder / "images.npy")
        ir.save(prepare(read_model(given.model)), folder / "float.onnx")
        found = in_turn(variants(given, folder), given.repeats, given.threads)
        show_parts(found)
        rows = agreement(folder, config, given.validation_images, given.threads) if given.validation_images else {}
    show_agreement(rows)
    values = {
        "NNCF / fullquant, whole process": ratio(found, "nncf", "fullquant"),
        "NNCF / fullquant, calibration alone": found["nncf"].facts["parts"]["calibrate"]
        / found["fullquant"].facts["parts"]["calibrate"],
        "reading the images, seconds": seconds,
    }
    accuracy = {key: {"top1": r.top1, "agreement": r.agreement, "mean_kl": r.mean_kl} for key, r in rows.items()}
    report.add(f"{given.images} images", found, values, read_images_s=seconds, accuracy=accuracy)


if __name__ == "__main__":
    main()
