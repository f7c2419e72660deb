"""Our step beside a peer's, in one run: the options, the variants and the ratios that all peers share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from alternate import KEPT_BLOCKS, Variant, alternate, thread_environment
from models import Case
from results import Report, add_common, ratio
from step_time import our_variants

Ratio = tuple[str, str, str]  # title, variant over, variant under


def peer_parser(description: str | None, python: str, *, repeats: int, batch: int = 16) -> argparse.ArgumentParser:
    """The options of a comparison. python: where README.md's recipe puts the peer's interpreter."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=python, help="interpreter of the peer's environment (%(default)s)")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not counted (%(default)s)")
    parser.add_argument(
        "--keep-blocks", action="store_true",
        help="the peer's allocator keeps freed blocks too, as fullquant has it done (runtime/memory.py)",
    )  # fmt: skip
    parser.add_argument(
        "--peer-threads", type=int, metavar="N",
        help="threads of the peer, where --threads would not be its best (PaddlePaddle sets OpenMP to 1 by itself)",
    )  # fmt: skip
    add_common(parser, repeats=repeats)
    return parser


def peer_variant(given: argparse.Namespace, name: str, script: str, arguments: Sequence[str]) -> Variant:
    """A peer's worker in its own interpreter. Ends the program where there is none."""
    if not Path(given.python).exists():
        raise SystemExit(
            f"{given.python} does not exist; benchmarks/README.md says how to make it, --python names another"
        )
    blocks = KEPT_BLOCKS if given.keep_blocks else {}
    threads = thread_environment(given.peer_threads) if given.peer_threads else {}
    return Variant(name, script, arguments, given.python, {**blocks, **threads})


def side_by_side(
    report: Report, chosen: Case, given: argparse.Namespace, peers: Sequence[Variant], ratios: Sequence[Ratio]
) -> None:
    """Measures our two variants and the peer's, one at a time and in turn."""
    found = alternate(
        [*our_variants(chosen), *peers], repeats=given.repeats, warmup=given.warmup, threads=given.threads
    )
    wanted = [("fullquant: QAT step / float step", "fullquant qat", "fullquant float"), *ratios]
    values = {title: ratio(found, over, under) for title, over, under in wanted}
    report.add(chosen.title, found, values, batch=chosen.batch, threads=given.threads, peer_threads=given.peer_threads)


def torch_peer(
    report: Report, chosen: Case, given: argparse.Namespace, name: str, script: str, layouts: Sequence[str],
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """A peer on PyTorch: its float and its QAT step in each layout, on the network of workers/mobilenetv3.py."""
    peers, ratios = [], []
    for layout in layouts:
        qat, plain = f"{name} qat {layout}", f"{name} float {layout}"
        for variant, title in (("float", plain), ("qat", qat)):
            size = ["--size", str(chosen.height), str(chosen.width)]
            arguments = ["--variant", variant, "--layout", layout, "--batch", str(chosen.batch), *size, *more]
            peers.append(peer_variant(given, title, script, arguments))
        ratios += [
            (f"{name} {layout}: QAT step / float step", qat, plain),
            (f"{name} {layout} QAT step / fullquant QAT step", qat, "fullquant qat"),
        ]
    side_by_side(report, chosen, given, peers, ratios)
