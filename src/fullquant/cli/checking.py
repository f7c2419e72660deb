"""`fullquant verify` and `fullquant benchmark`: what has been written, run in the runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullquant.cli import options as opt
from fullquant.cli.console import one_line_errors, output, show_log

if TYPE_CHECKING:
    from fullquant.config import Config

SaveDir = Annotated[
    str, typer.Argument(metavar="SAVE_DIR", help="What quantize has written: a folder, or an int8 file.")
]
Reference = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="The float model. (default: the one of report.json)", show_default=False),
]


def verify(
    save_dir: SaveDir,
    data: opt.Data = None,
    config: opt.ConfigFile = None,
    reference: Reference = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="integer, onnxruntime, openvino, paddle, paddle_onednn or paddle_lite; may be repeated. "
            "(default: all that are there)",
            show_default=False,
        ),
    ] = None,
    total_images: Annotated[
        int | None,
        typer.Option(min=1, help="How many images, spread evenly over their list. (default: all, at most 2000)"),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Top-1 that a runtime may lose against the simulation.")
    ] = 0.3,
    min_agreement: Annotated[
        float,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Images that keep their class in integer kernels."),
    ] = 90.0,
    min_plain: Annotated[
        float,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="The same where a runtime computes every operator as it is written."
        ),
    ] = 99.0,
    locate: Annotated[
        bool, typer.Option("--locate/--no-locate", help="Look for the first tensor that differs, and why.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was found.")
    ] = None,
    batch_size: opt.BatchSize = None,
    workers: opt.Workers = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    scale: opt.Scale = None,
    img_size: opt.ImgSize = None,
    resize_size: opt.ResizeSize = None,
    channel_order: opt.ChannelOrder = None,
    interpolation: opt.Interpolation = None,
    keep_ratio_pad: opt.KeepRatioPad = None,
    verbose: opt.Verbose = False,
) -> None:
    """Runs what quantize has written in every runtime, beside the simulation that the files mean.

    The status is 1 where a runtime is beyond the tolerance, refuses a file, or a file itself is wrong. Images and
    preprocessing are those of report.json unless --data or --config says otherwise. "= sim": images with the
    simulation's class; "steps": largest difference of an output, in steps of its scale.

    Examples:

      fullquant verify output

      fullquant verify output --config configs/resnet20_cifar10.yaml --engine onnxruntime --total-images 200
    """
    from fullquant.auto_compression.verify_saved import Tolerance, verify_saved
    from fullquant.cli.show_verification import show_verification
    from fullquant.report.record import as_json
    from fullquant.writers.atomic import write_atomically

    show_log(verbose)
    keys = opt.image_keys({
        "mean": mean, "std": std, "scale": scale, "img_size": img_size, "resize_size": resize_size,
        "channel_order": channel_order, "interpolation": interpolation, "keep_ratio_pad": keep_ratio_pad,
        "batch_size": batch_size, "workers": workers,
    })  # fmt: skip
    with one_line_errors():
        found = verify_saved(
            save_dir, _images(save_dir, data, config, keys), reference=reference, engines=engine,
            total_images=total_images, tolerance=Tolerance(max_drop, min_agreement, min_plain), locate=locate,
        )  # fmt: skip
        if json_file is not None:
            write_atomically(json_file, as_json(found).encode("utf-8"))
    show_verification(output(), found)
    if not found.passed:
        raise typer.Exit(1)


def _images(save_dir: str, data: str | None, config: str | None, keys: dict[str, Any]) -> Config | None:
    """Where the images are; None: as the report says, with nothing changed."""
    if data is None and config is None and not keys:
        return None
    if data is not None or config is not None:
        from fullquant.auto_compression.saved import find_saved

        return opt.made_config(str(find_saved(save_dir).models[0]), data, config, keys)
    from fullquant.auto_compression.saved import find_saved, images_of_record

    recorded = images_of_record(find_saved(save_dir))
    return replace(recorded, global_section=replace(recorded.global_section, **keys))


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
