"""Real timm architectures, exported by PyTorch's torch.export, through the whole line, as a table.

    python benchmarks/timm_exports --python PYTHON_WITH_TIMM --results out/timm --markdown out/timm.md

Each model is read, quantized with every tensor in integers (is_full_quantize), written as ONNX and as a Paddle program
in both forms, and run in ONNX Runtime (without and with optimisations) and in Paddle Inference on 100 small images.
Results are kept in --results; a model that has one is not run again unless --again names it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.architectures.line import CALIBRATION, through  # noqa: E402

ASSETS = Path(os.environ.get("FULLQUANT_ASSETS", HERE.parents[2] / "shared" / "assets"))
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
#: timm's name and the image size; without one the model's own
MODELS = (
    "vit_tiny_patch16_224:96", "deit_tiny_distilled_patch16_224:96",
    "mobilevit_xxs:96", "edgenext_xx_small:96", "pvt_v2_b0:96", "poolformer_s12:96",
    "resnet10t:96", "resnext26ts:96", "seresnext26t_32x4d:96", "res2net50_14w_8s:96", "mobilenetv2_050:96",
    "mobilenetv3_small_050:96", "mobilenetv4_conv_small_050:96", "efficientnet_b0:96", "efficientnet_lite0:96",
    "regnety_002:96", "repvgg_a0:96", "densenet121:96", "ghostnet_050:96", "ghostnetv2_100:96",
    "fasternet_t0:96", "starnet_s1:96", "hgnetv2_b0:96", "convnext_atto:96",
    "mobilevitv2_050:96", "levit_128s",
)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter with timm and onnxscript")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--again", action="append", default=[], metavar="PATTERN", help="repeat these")
    parser.add_argument("--results", type=Path, default=Path("out/timm"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/fullquant-timm"), help="folder of the exports")
    parser.add_argument("--keep", action="store_true", help="keep the exports, and use those that are there")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    return parser.parse_args()


def _write_images(path: Path, count: int = 200) -> None:
    folder = ASSETS / "imagenet_mini"
    names = [line.split()[0] for line in (folder / "val_list.txt").read_text().splitlines()][:count]
    images = [np.asarray(Image.open(folder / n).convert("RGB").resize((224, 224)), np.float32) for n in names]
    np.save(path, np.stack([(i / 255 - _MEAN) / _STD for i in images]).transpose(0, 3, 1, 2).astype(np.float32))


def _export(options: argparse.Namespace, model: str) -> dict[str, Any]:
    images = options.work / "images.npy"
    if not images.exists():
        _write_images(images)
    command = [options.python, str(HERE / "exporter.py"), str(options.work), str(images), model]
    printed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    told: dict[str, Any] = json.loads(printed) if printed else {"export_error": "the exporter died"}
    return told


def _model(options: argparse.Namespace, model: str) -> dict[str, Any]:
    name = model.partition(":")[0]
    path, kept = options.work / f"{name}.onnx", options.work / f"{name}.json"
    if not (options.keep and kept.exists()):
        kept.write_text(json.dumps(_export(options, model)))
    told = json.loads(kept.read_text())
    if "export_error" in told:
        return told
    began = time.monotonic()
    arrays = np.load(path.with_suffix(".npz"))
    try:
        assert len(arrays["calibration"]) == CALIBRATION
        found = through(
            path, options.work / "int8", arrays["calibration"], arrays["test"], logits=arrays["logits"],
            batch=20 if told["size"] <= 96 else 4,
        )  # fmt: skip
        told |= {
            "float_tensors": found.float_tensors[:20], "float_difference": found.float_difference,
            "float_simulated": found.kept, "agreement": found.agreement, "difference": found.difference,
        }  # fmt: skip
    except Exception as error:  # the table tells it
        told |= {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    shutil.rmtree(options.work / "int8", ignore_errors=True)
    if not options.keep:
        for file in (path, path.with_suffix(".npz"), kept):
            file.unlink(missing_ok=True)
    return {**told, "line_seconds": round(time.monotonic() - began, 1)}


def _table(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        "| model | image | PyTorch right | float difference | full-integer | float/simulated "
        "| simulated/ONNX Runtime plain | optimised | simulated/Paddle | largest difference, plain and Paddle |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in sorted(results.items()):
        if "agreement" not in found:
            rows.append(f"| {name} | | {found.get('error') or found.get('export_error')} |" + " |" * 7)
            continue
        same, difference = found["agreement"], found["difference"]
        floats = "yes" if not found["float_tensors"] else "no: " + ", ".join(found["float_tensors"])
        paddle = min(same["paddle"], same["paddle json"])
        worst = max(difference[k] for k in ("onnxruntime plain", "paddle", "paddle json"))
        rows.append(
            f"| {name} | {found['size']} | {found['float_accuracy']:.2f} | {found['float_difference']:.1e} | {floats} "
            f"| {found['float_simulated']:.2f} | {same['onnxruntime plain']:.2f} | {same['onnxruntime']:.2f} "
            f"| {paddle:.2f} | {worst:.3f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    logging.disable(logging.INFO)
    options = _arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.table and options.python is None:
        sys.exit("--python is missing: an interpreter with timm (benchmarks/README.md)")
    for model in () if options.table else MODELS:
        name = model.partition(":")[0]
        if options.only and not any(fnmatch.fnmatchcase(name, p) for p in options.only):
            continue
        path = options.results / f"{name}.json"
        if path.exists() and not any(fnmatch.fnmatchcase(name, p) for p in options.again):
            continue
        found = _model(options, model)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found), flush=True)
    results = {p.stem: json.loads(p.read_text()) for p in options.results.glob("*.json")}
    if options.markdown is not None:
        options.markdown.write_text(_table(results))


if __name__ == "__main__":
    main()
