"""Every backbone of paddleclas through the whole product, as a table.

    python benchmarks/conformance --form json --only 'ResNet50*' --python /tmp/clas3/bin/python
    python benchmarks/conformance --form pdmodel --python /tmp/slim/bin/python --markdown docs/conformance.md

Results are kept in --results, model by model: a run that was interrupted goes on where it was; --again repeats what
failed, --table writes the tables alone. Exports are made in --work and removed when they are checked.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pixels import normalised
from table import markdown, verdict
from worker import Worker

HERE = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("FULLQUANT_ASSETS", HERE.parents[2] / "shared" / "assets"))
CALIBRATION = 8  # the first of the images
IMAGES, LARGE = 16, 10_000_000  # compared; half of them for a model of more parameters
#: Left out, with the reason that the table tells.
TOO_LARGE = dict.fromkeys(
    (
        "EVA_vit_giant_patch14", "MAE_vit_huge_patch14", "MAE_vit_large_patch16", "BEiTv2_vit_large_patch16_224",
        "CLIP_vit_large_patch14_224", "CLIP_vit_large_patch14_336", "CLIP_large_patch14_224_aesthetic",
        "cae_large_patch16_224", "ViT_large_patch16_224", "ViT_large_patch16_384", "ViT_large_patch32_384",
        "ResNeXt101_32x48d_wsl", "ResNeXt101_32x32d_wsl", "ConvNeXt_large_384", "CSWinTransformer_large_384",
        "SwinTransformer_large_patch4_window12_384", "SwinTransformerV2_large_patch4_window24_384", "CvT_W24_384",
    ),
    "left out: too large for the time and memory at hand, not tried",
)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("pdmodel", "json"), default="json", help="which form Paddle exports")
    parser.add_argument("--python", help="interpreter with PaddlePaddle and paddleclas (/tmp/clas3, /tmp/slim)")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--results", type=Path, default=Path("out/conformance"), help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("/tmp/fullquant-conformance"), help="folder of the exports")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each of a model's two steps")
    parser.add_argument(
        "--images", type=int, help="images that are compared (16, and 8 for models of more than 10 million parameters)"
    )
    parser.add_argument("--again", action="store_true", help="repeat the models that did not pass")
    parser.add_argument("--keep", action="store_true", help="keep the exports and the files written from them (int8/)")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables")
    parser.add_argument("--markdown", type=Path, help="write the table; its rows without a new result stay")
    return parser.parse_args()


def _write_images(path: Path, count: int) -> None:
    """ImageNet images, normalised, 256x256, NCHW."""
    folder = ASSETS / "imagenet_mini"
    lines = (folder / "val_list.txt").read_text().splitlines()
    picked = [lines[i * len(lines) // count].split()[0] for i in range(count)]
    images = [normalised(Image.open(folder / name).convert("RGB").resize((256, 256))) for name in picked]
    np.save(path, np.stack(images).transpose(0, 3, 1, 2))


def _commit() -> str:
    """Of this checkout, with "+" where files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    told = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _names(python: str) -> list[str]:
    printed = subprocess.run(
        [python, str(HERE / "exporter.py"), "--list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    ).stdout
    return json.loads(printed)


def _chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """In the order of the patterns, so that a run can begin with what is small."""
    matched = (n for p in patterns or ["*"] for n in names if fnmatch.fnmatchcase(n, p))
    return list(dict.fromkeys(matched))


class Harness:
    """The two workers, and the results on disk."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.results.mkdir(parents=True, exist_ok=True)
        options.work.mkdir(parents=True, exist_ok=True)
        images = options.images or IMAGES
        self.images = options.work / f"normalised{images}.npy"
        if not self.images.exists():
            _write_images(self.images, CALIBRATION + images)
        self.commit = _commit()
        log = options.results / f"{options.form}.log"
        self.exporter = Worker([options.python, str(HERE / "exporter.py")], log)
        self.checker = Worker([sys.executable, str(HERE / "checker.py")], log)

    def path(self, name: str) -> Path:
        return self.options.results / f"{name}.{self.options.form}.json"

    def run(self, names: Sequence[str]) -> None:
        try:
            for index, name in enumerate(names):
                began = time.monotonic()
                result = {"export_error": TOO_LARGE[name]} if name in TOO_LARGE else self._model(name)
                self.path(name).write_text(json.dumps(result, indent=1) + "\n")
                took = time.monotonic() - began
                print(
                    f"[{index + 1}/{len(names)}] {name} {self.options.form} {took:.0f} s: {verdict(result)}", flush=True
                )
        finally:
            self.exporter.close()
            self.checker.close()

    def _model(self, name: str) -> dict[str, Any]:
        folder = self.options.work / f"{name}_{self.options.form}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        task = {"name": name, "form": self.options.form, "folder": str(folder), "images": str(self.images)}
        task["keep"] = self.options.keep
        if self.options.images is None:
            task["large"] = {"parameters": LARGE, "images": CALIBRATION + IMAGES // 2}
        told = self.exporter.ask(task, self.options.limit)
        run = {"date": datetime.now(timezone.utc).date().isoformat(), "commit": self.commit}
        if "error" in told:
            return {"export_error": told["error"], **run}
        task |= {"height": told["height"], "width": told["width"], "count": told.pop("images") - CALIBRATION}
        answer = self.checker.ask(task, self.options.limit)
        if not self.options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return {**told, "export_seconds": told["seconds"], **answer, **run}

    def wanted(self, names: Sequence[str]) -> list[str]:
        return [n for n in names if not self.path(n).exists() or (self.options.again and not self._passed(n))]

    def _passed(self, name: str) -> bool:
        return verdict(json.loads(self.path(name).read_text())) == "pass"


def _write_tables(options: argparse.Namespace) -> None:
    results = {}
    for path in options.results.glob("*.*.json"):
        name, form, _ = path.name.rsplit(".", 2)
        results[f"{name} {form}"] = json.loads(path.read_text())
    (options.results / "all.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if options.markdown is not None:
        dates = sorted({r["date"] for r in results.values() if "date" in r})
        heading = (HERE / "heading.md").read_text().replace("{date}", dates[-1] if dates else "never")
        known = options.results / "names.json"
        names = json.loads(known.read_text()) if known.exists() else None
        earlier = options.markdown.read_text() if options.markdown.exists() else ""
        options.markdown.write_text(markdown(results, heading, names, earlier))


def main() -> None:
    options = _arguments()
    if not options.table:
        if options.python is None:
            sys.exit("--python is missing: an interpreter with PaddlePaddle and paddleclas (benchmarks/README.md)")
        harness = Harness(options)
        names = _names(options.python)
        (options.results / "names.json").write_text(json.dumps(names, indent=1) + "\n")
        harness.run(harness.wanted(_chosen(names, options.only)))
    _write_tables(options)


if __name__ == "__main__":
    main()
