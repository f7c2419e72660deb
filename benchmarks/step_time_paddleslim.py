"""PaddleSlim's step (full quantization with distillation) beside ours, on a text-line classifier and MobileNetV3-large.

    python benchmarks/step_time_paddleslim.py --json out/paddleslim.json
    python benchmarks/step_time_paddleslim.py --only textline --conv-only

Both sides train the same exported file. PaddleSlim 2.6 fails at the dropout operator, so the MobileNetV3-large is one
without it: paddle.vision's, exported on the spot, or the folder of --mobilenetv3-large.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace

from alternate import run_once
from models import Case, case
from peers import peer_parser, peer_variant, side_by_side
from results import Report

_CASES = {"textline": "mobilenetv3_small_ocr_cls", "mobilenetv3_large": "mobilenetv3_large"}


def main() -> None:
    parser = peer_parser(__doc__, "/tmp/slim/bin/python", repeats=12, batch=0)
    parser.add_argument("--only", choices=_CASES, help="one network instead of both")
    parser.add_argument("--mobilenetv3-large", metavar="DIR", help="folder with inference.pdmodel and .pdiparams")
    parser.add_argument("--conv-only", action="store_true", help="PaddleSlim quantizes convolutions alone; ours all")
    given = parser.parse_args()
    report = Report("step_time_paddleslim", given)
    for name, known in _CASES.items():
        if given.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as folder:
                chosen = case(known, given.batch or None)
                if name == "mobilenetv3_large":
                    chosen = replace(chosen, model=given.mobilenetv3_large or exported(given, folder))
                compare(report, chosen, given)


def exported(given: argparse.Namespace, folder: str) -> str:
    """The folder, with paddle.vision's MobileNetV3-large in it."""
    run_once(peer_variant(given, "export", "export_mobilenetv3_paddle.py", [folder]))
    return folder


def compare(report: Report, chosen: Case, given: argparse.Namespace) -> None:
    """One network, ours and PaddleSlim's steps in turn."""
    slim = "paddleslim conv-only" if given.conv_only else "paddleslim full"
    arguments = [*chosen.arguments, *(["--conv-only"] if given.conv_only else [])]
    peer = peer_variant(given, slim, "paddleslim_step.py", arguments)
    side_by_side(report, chosen, given, [peer], [(f"{slim} step / fullquant QAT step", slim, "fullquant qat")])


if __name__ == "__main__":
    main()
