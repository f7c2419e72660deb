"""PaddleSlim's step (full quantization with distillation) beside ours, on a text-line classifier and MobileNetV3-large.

    python benchmarks/step_time_paddleslim.py --json out/paddleslim.json
    python benchmarks/step_time_paddleslim.py --only textline --conv-only

PaddleSlim 2.6 fails at the dropout operator: the MobileNetV3-large it gets must be exported without (README.md).
Both sides train the same exported file.
"""

from __future__ import annotations

from dataclasses import replace

from models import case
from peers import peer_parser, peer_variant, side_by_side
from results import Report

_CASES = {"textline": "mobilenetv3_small_ocr_cls", "mobilenetv3_large": "mobilenetv3_large"}


def main() -> None:
    parser = peer_parser(__doc__, "/tmp/slim/bin/python", repeats=12, batch=0)
    parser.add_argument("--only", choices=_CASES, help="one network instead of both")
    parser.add_argument("--mobilenetv3-large", default="/tmp/slim_export/nodrop", help="its folder (%(default)s)")
    parser.add_argument("--conv-only", action="store_true", help="PaddleSlim quantizes convolutions alone; ours all")
    given = parser.parse_args()
    report = Report("step_time_paddleslim", given)
    for name, known in _CASES.items():
        if given.only not in (None, name):
            continue
        chosen = case(known, given.batch or None)
        if name == "mobilenetv3_large":
            chosen = replace(chosen, model=given.mobilenetv3_large)
        slim = "paddleslim conv-only" if given.conv_only else "paddleslim full"
        arguments = [*chosen.arguments, *(["--conv-only"] if given.conv_only else [])]
        peer = peer_variant(given, slim, "paddleslim_step.py", arguments)
        side_by_side(report, chosen, given, [peer], [(f"{slim} step / fullquant QAT step", slim, "fullquant qat")])


if __name__ == "__main__":
    main()
