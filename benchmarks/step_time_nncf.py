"""NNCF's training step on MobileNetV3-large beside ours: the same network, weights, loss, optimizer, batch, threads.

python benchmarks/step_time_nncf.py --json out/nncf.json
"""

from __future__ import annotations

from models import case
from peers import peer_parser, torch_peer
from results import Report

_LAYOUTS = ("nchw", "channels_last")


def main() -> None:
    parser = peer_parser(__doc__, "/tmp/nncf/bin/python", repeats=10)
    parser.add_argument("--layouts", nargs="+", choices=_LAYOUTS, default=_LAYOUTS)
    given = parser.parse_args()
    report = Report("step_time_nncf", given)
    torch_peer(report, case("mobilenetv3_large", given.batch), given, "nncf", "nncf_step.py", given.layouts)


if __name__ == "__main__":
    main()
