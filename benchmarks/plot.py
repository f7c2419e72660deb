"""The plot of docs/performance.md: time of a training step by program, from the JSON files of the step benchmarks.

    python benchmarks/plot.py out/*.json --output docs/performance.svg

A panel for each run: a peer is drawn beside the steps of ours that were measured in turn with it, and no others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from results import measurements

_OURS, _PEERS = "#1f6f8b", "#b8b8b8"
_REFERENCE = "fullquant qat"
_BAR_INCHES = 0.32


def panels(found: list[dict[str, Any]]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(title, variants) of every measurement of steps; others, as of start-up, are not drawn."""
    return [(_title(m), m["variants"]) for m in found if _REFERENCE in m["variants"]]


def _title(measured: dict[str, Any]) -> str:
    threads, peer = measured["threads"], measured.get("peer_threads")
    told = f"{threads} thread{'s'[: threads > 1]}" + (f", the peer {peer}" if peer else "")
    return f"{measured['name']}, {told} ({measured['benchmark']})"


def draw(axes: Any, title: str, variants: dict[str, dict[str, Any]]) -> None:
    """A bar for each program: the median, its quartiles as a line, and its multiple of our QAT step."""
    reference = variants[_REFERENCE]["median"]
    for position, (name, row) in enumerate(variants.items()):
        low, high = row["quartiles"]
        colour = _OURS if name.startswith("fullquant") else _PEERS
        axes.barh(position, row["median"], color=colour, height=0.7)
        axes.plot([low, high], [position, position], color="black", linewidth=1)
        label = f" {row['median']:.2f} s, {row['median'] / reference:.2f}x"
        axes.text(max(high, row["median"]), position, label, va="center", fontsize=8)
    axes.set_yticks(range(len(variants)), list(variants), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["median"] for row in variants.values()))
    axes.set_title(title, fontsize=9, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of the step benchmarks")
    parser.add_argument("--output", type=Path, default=Path("docs/performance.svg"), help="(%(default)s)")
    given = parser.parse_args()
    drawn = panels(measurements(given.files))
    if not drawn:
        raise SystemExit(f"none of the files has a measurement of {_REFERENCE}")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fullquant"  # the same measurements give the same file
    from matplotlib import pyplot

    heights = [len(variants) + 1.5 for _, variants in drawn]
    figure, all_axes = pyplot.subplots(
        len(drawn), 1, figsize=(8, _BAR_INCHES * sum(heights)), squeeze=False, height_ratios=heights
    )
    for axes, (title, variants) in zip(all_axes[:, 0], drawn, strict=True):
        draw(axes, title, variants)
    all_axes[-1, 0].set_xlabel("seconds a step (median; line: quartiles), multiple of our QAT step")
    figure.tight_layout()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.output, metadata={"Date": None} if given.output.suffix == ".svg" else None)
    print(given.output)


if __name__ == "__main__":
    main()
