"""The training step of PT2E quantization-aware training (torchao, eager) on MobileNetV3-large beside ours.

python benchmarks/step_time_torchao.py --json out/torchao.json
python benchmarks/step_time_torchao.py --quantizer x86_inductor
"""

from __future__ import annotations

from models import case
from peers import peer_parser, torch_peer
from results import Report

_LAYOUTS = ("nchw", "channels_last")


def main() -> None:
    parser = peer_parser(__doc__, "/tmp/torchao/bin/python", repeats=10)
    parser.add_argument("--layouts", nargs="+", choices=_LAYOUTS, default=_LAYOUTS)
    parser.add_argument("--quantizer", choices=("xnnpack", "x86_inductor"), default="xnnpack")
    given = parser.parse_args()
    report = Report("step_time_torchao", given)
    torch_peer(
        report, case("mobilenetv3_large", given.batch), given, f"torchao {given.quantizer}", "torchao_step.py",
        given.layouts, ["--quantizer", given.quantizer],
    )  # fmt: skip


if __name__ == "__main__":
    main()
