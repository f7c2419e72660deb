"""`fullquant verify` and `fullquant benchmark`: what has been written, run in the runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fullquant.cli import options as opt
from fullquant.cli.console import one_line_errors, output, show_log

SaveDir = Annotated[
    str, typer.Argument(metavar="SAVE_DIR", help="What quantize has written: a folder, or an int8 file.")
]
Reference = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="The float model. (default: the one of report.json)", show_default=False),
]


def benchmark(
    save_dir: SaveDir,
    reference: Reference = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, openvino, paddle or paddle_onednn; may be repeated. (default: all that are installed)",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images in a run.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 100,
    img_size: opt.ImgSize = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was measured.")
    ] = None,
) -> None:
    """Latency and size, float against int8, in the runtimes that are installed. SAVE_DIR: what quantize has written.

    The models are run in turn, a few times each, so that a drift of the machine hits all of them alike. "int8 layers"
    counts the convolutions and matrix products that the runtime really computes in integers.

    Examples:

      fullquant benchmark output

      fullquant benchmark output --reference MobileNetV3_large_x1_0_infer --threads 4 --batch 8 --json times.json
    """
    from fullquant.auto_compression.benchmark import benchmark as measure
    from fullquant.cli.show_benchmark import show_benchmark
    from fullquant.report.record import as_json
    from fullquant.writers.atomic import write_atomically

    show_log()
    with one_line_errors():
        found = measure(
            save_dir, reference=reference, engines=engine, threads=threads, batch=batch, repeats=repeats,
            image_size=img_size,
        )  # fmt: skip
        if json_file is not None:
            write_atomically(json_file, as_json(found).encode("utf-8"))
    show_benchmark(output(), found)
    if all(row.error for row in found.rows):
        raise typer.Exit(1)
