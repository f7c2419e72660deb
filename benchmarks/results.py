"""What all benchmarks share: medians, the table, the JSON file, the machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alternate import Series
from rich.console import Console
from rich.table import Table

from fullquant.report.machine import machine, package_versions


def add_common(parser: argparse.ArgumentParser, *, repeats: int, threads: int = 1) -> None:
    """The options that all measurements have."""
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="measured runs or steps of each variant (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=threads, help="threads of each process (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def summary(series: Series) -> dict[str, Any]:
    """Median and quartiles of a variant, with all its numbers."""
    seconds = series.seconds
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "median": statistics.median(seconds),
        "quartiles": [quartiles[0], quartiles[2]],
        "peak_mib": series.peak_mib,
        "seconds": seconds,
        **series.facts,
    }


def ratio(found: Mapping[str, Series], over: str, under: str) -> float:
    """Median of one variant by the median of another."""
    return statistics.median(found[over].seconds) / statistics.median(found[under].seconds)


def show(title: str, found: Mapping[str, Series], ratios: Mapping[str, float]) -> None:
    """The table of one measurement, and its ratios below."""
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    for column in ("median s", "quartiles s", "peak MiB", "n"):
        table.add_column(column, justify="right")
    for name, series in found.items():
        row = summary(series)
        low, high = row["quartiles"]
        peak = "-" if series.peak_mib is None else f"{series.peak_mib:.0f}"
        table.add_row(name, f"{row['median']:.4g}", f"{low:.4g} - {high:.4g}", peak, str(len(series.seconds)))
    console = Console(width=110)
    console.print(table)
    for name, value in ratios.items():
        console.print(f"{name}: {value:.2f}", highlight=False)


_BUSY = 0.5


class Report:
    """Everything that a benchmark measured; the load of the machine at its start says whether it was idle."""

    def __init__(self, benchmark: str, settings: argparse.Namespace) -> None:
        load = os.getloadavg()[0]
        if load > _BUSY:
            print(f"the machine is not idle (load {load:.1f}): times will be too long", file=sys.stderr)
        self._record: dict[str, Any] = {
            "benchmark": benchmark,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": package_versions(),
            "load_before": load,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
            "measurements": [],
        }
        self._path: Path | None = settings.json

    def add(self, name: str, found: Mapping[str, Series], ratios: Mapping[str, float], **more: Any) -> None:
        """One measurement: shown now, and written at once, so that a run that is interrupted leaves what it has."""
        show(name, found, ratios)
        variants = {variant: summary(series) for variant, series in found.items()}
        self.add_plain({"name": name, "variants": variants, "ratios": dict(ratios), **more})

    def add_plain(self, measurement: Mapping[str, Any]) -> None:
        """A measurement that is shown elsewhere."""
        self._record["measurements"].append(dict(measurement))
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._record, indent=1) + "\n", encoding="utf-8")


def measurements(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """All measurements of several JSON files, each with the benchmark and machine that it belongs to."""
    found = []
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        common = {key: record[key] for key in ("benchmark", "machine", "settings", "date")}
        found += [{**measurement, **common} for measurement in record["measurements"]]
    return found
