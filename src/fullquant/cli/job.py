"""What the commands do once their arguments are read. Imports the whole product: import it inside a command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fullquant.auto_compression import CompressionResult
from fullquant.auto_compression.evaluate import ALL, evaluate
from fullquant.auto_compression.from_config import quantize
from fullquant.cli.console import list_files, output
from fullquant.config import Config, load_config
from fullquant.distributed import from_environment
from fullquant.errors import ConfigError, DataError, EngineError
from fullquant.report.record import ResultRow
from fullquant.report.table import results_table


def compress(
    config: str | Path | Config, save_dir: str, *, total_images: int | None = None, verify_images: int | None = None,
    devices: str | None = None,
) -> CompressionResult:  # fmt: skip
    """Quantizes, and ends with the table, what was kept and why, and where the files are: in process 0."""
    began = time.monotonic()
    if verify_images is not None:
        loaded = config if isinstance(config, Config) else load_config(config)
        config = replace(loaded, global_section=replace(loaded.global_section, verify_images=verify_images))
    result = quantize(config, save_dir, total_images=total_images, device=devices)
    if from_environment().world.first:
        show_result(output(), result, time.monotonic() - began)
    return result


def show_result(console: Console, result: CompressionResult, seconds: float) -> None:
    """The end of a run, on stdout."""
    record = result.record
    if record.rows:
        show_rows(console, record.rows, record.model)
    for note in record.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if record.skipped_images:
        console.print(Text(f"{record.skipped_images} unreadable images were skipped", style="yellow"))
    console.print(Text(f"kept: {record.kept} ({record.kept_reason})"), soft_wrap=True)
    if record.placement is not None:
        console.print(Text(_placed(result)), soft_wrap=True)
    console.print(Text(f"done in {int(seconds) // 60} min {int(seconds) % 60} s; files:"), soft_wrap=True)
    list_files(console, [*result.files.paths(), result.save_dir / "report.json", result.save_dir / "report.html"])


def _placed(result: CompressionResult) -> str:
    placement = result.record.placement
    assert placement is not None
    int8, kept = placement.quantized.get("activation", 0), placement.kept_float.get("activation", 0)
    whole = "fully integer" if placement.full_integer else f"{kept} activations stay float (reasons in the report)"
    return f"target {placement.target}: {int8} activations int8, {whole}"


def evaluate_one(
    console: Console, config: str | Path | Config, model_dir: str | None, *, model_filename: str | None,
    params_filename: str | None, engine: str, optimize: bool, total_images: int | None,
) -> float:  # fmt: skip
    """Top-1 of one model in one engine; prints what was measured. DataError where the images have no labels."""
    if engine == ALL:
        raise ConfigError("eval.py measures in one engine; for several side by side: fullquant evaluate --engine all")
    (row,) = evaluate(
        config, model_dir, model_filename=model_filename, params_filename=params_filename, engines=(engine,),
        optimize=optimize, total_images=total_images,
    )  # fmt: skip
    show_rows(console, [row], row.file)
    if row.error:
        raise EngineError(row.error)
    if row.top1 is None:
        raise DataError("the validation images have no labels: list them with labels, or put them into class folders")
    return row.top1


def show_rows(console: Console, rows: Sequence[ResultRow], name: str) -> None:
    """The table of an evaluation, with the name of the model and the number of images in its title."""
    images = max((row.images for row in rows), default=0)
    console.print(results_table(rows, title=f"{name}, {images} images"))
    console.print()
