"""The commands of `fullquant`: quantize, evaluate, inspect, verify, benchmark, convert."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from fullquant import __version__
from fullquant.cli import options as opt
from fullquant.cli.checking import benchmark, verify
from fullquant.cli.console import device, one_line_errors, output, run_command_line, show_log, size
from fullquant.cli.console import output as console_output

app = typer.Typer(
    name="fullquant",
    help="Turns an exported image classifier into a fully integer one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model folder or file: .pdmodel, __model__, Paddle 3 .json, or .onnx.")
]


def main() -> None:
    """The entry point of the command `fullquant`."""
    run_command_line(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def quantize(
    model: Model,
    data: opt.Data = None,
    config: opt.ConfigFile = None,
    save_dir: Annotated[str, typer.Option(metavar="DIR", help="Where the integer model goes.")] = "./output",
    ptq: Annotated[bool, typer.Option("--ptq", help="Calibrate only; no training.")] = False,
    target: Annotated[
        str | None,
        typer.Option(help="paddle_lite, verisilicon_timvx, paddle_inference, tensorrt, onnxruntime or openvino."),
    ] = None,
    reduce_range: Annotated[
        bool | None,
        typer.Option(
            "--reduce-range/--full-range", help="Weights in [-64, 63], for x86 without VNNI.", show_default=False
        ),
    ] = None,
    not_quant_pattern: opt.NotQuantPattern = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. (default: 300)")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate. (default: 5e-5)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --save-dir.")] = False,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Random crops and flips in training.", show_default=False),
    ] = None,
    verify_images: opt.VerifyImages = None,
    batch_size: opt.BatchSize = None,
    workers: opt.Workers = None,
    devices: opt.Devices = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    scale: opt.Scale = None,
    img_size: opt.ImgSize = None,
    resize_size: opt.ResizeSize = None,
    channel_order: opt.ChannelOrder = None,
    interpolation: opt.Interpolation = None,
    keep_ratio_pad: opt.KeepRatioPad = None,
    output_name: opt.OutputName = None,
    verbose: opt.Verbose = False,
) -> None:
    """Writes MODEL as int8: a Paddle program and an ONNX QDQ model, with a report.

    Without --config the preprocessing is ImageNet's (mean 0.485,0.456,0.406, std 0.229,0.224,0.225) at the size of the
    model's input, and training is 300 steps with Adam.

    Examples:

      fullquant quantize MobileNetV3_large_x1_0_infer --data ILSVRC2012 --save-dir output

      fullquant quantize model.onnx --data images --ptq --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --target onnxruntime

      fullquant quantize model_dir --config configs/mobilenetv3_large_qat_dis.yaml --steps 2000
    """
    from fullquant.distributed import joined

    show_log(verbose)
    keys = opt.image_keys({
        "mean": mean, "std": std, "scale": scale, "img_size": img_size, "resize_size": resize_size,
        "channel_order": channel_order, "interpolation": interpolation, "keep_ratio_pad": keep_ratio_pad,
        "batch_size": batch_size, "workers": workers, "augment": augment, "output_name": output_name,
        "verify_images": verify_images,
    })  # fmt: skip
    devices = device(devices)
    with one_line_errors(), joined(devices):
        from fullquant.cli.job import compress

        made = opt.made_config(model, data, config, keys, ptq=ptq)
        patterns = tuple(not_quant_pattern) if not_quant_pattern else None
        made = opt.with_quantization(
            made, {"target": target, "reduce_range": reduce_range, "not_quant_pattern": patterns}
        )
        made = opt.with_training(made, steps, learning_rate, resume)
        compress(made, save_dir, devices=devices)


@app.command()
def evaluate(
    model: Model,
    data: opt.Data = None,
    config: opt.ConfigFile = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, paddle, paddle_onednn, openvino, paddle_lite; of int8 models also simulated, integer, "
            "integer_gemmlowp; or all. May be repeated. (default: onnxruntime)",
            show_default=False,
        ),
    ] = None,
    optimize: Annotated[
        bool | None,
        typer.Option(
            "--optimize/--no-optimize",
            help="Graph optimisations of the engines. (default: ONNX Runtime without and with, the others as usual)",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Another model, usually the float one, to measure the agreement with."),
    ] = None,
    total_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many images are evaluated, spread evenly over their list, the same each time. (default: all)",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON on stdout.")] = False,
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
    output_name: opt.OutputName = None,
    verbose: opt.Verbose = False,
) -> None:
    """Accuracy of MODEL, float or int8, in one runtime or several side by side.

    Examples:

      fullquant evaluate output/model_int8.onnx --config configs/resnet20_cifar10.yaml

      fullquant evaluate output --config configs/resnet20_cifar10.yaml --engine all --reference resnet20_infer
    """
    from fullquant.auto_compression.evaluate import evaluate as measure
    from fullquant.cli.job import show_rows

    show_log(verbose)
    keys = opt.image_keys({
        "mean": mean, "std": std, "scale": scale, "img_size": img_size, "resize_size": resize_size,
        "channel_order": channel_order, "interpolation": interpolation, "keep_ratio_pad": keep_ratio_pad,
        "batch_size": batch_size, "workers": workers, "output_name": output_name,
    })  # fmt: skip
    with one_line_errors():
        made = opt.made_config(model, data, config, keys)
        rows = measure(
            made, engines=tuple(engine or ("onnxruntime",)), optimize=optimize, total_images=total_images,
            reference=reference,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        show_rows(output(), rows, rows[0].file)
    if all(row.error for row in rows):
        raise typer.Exit(1)


@app.command()
def inspect(
    model: Model,
    target: Annotated[str, typer.Option(help="The runtime whose rules decide what becomes int8.")] = "paddle_lite",
    img_size: Annotated[
        object | None,
        typer.Option("--img-size", parser=size, metavar="H[,W]", help="Height and width where they are free."),
    ] = None,
    not_quant_pattern: opt.NotQuantPattern = None,
    output_name: opt.OutputName = None,
    operators: Annotated[
        bool, typer.Option("--operators", help="List every operator with its sizes, and what it is computed in.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with its decision and reason.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
) -> None:
    """What MODEL holds, and what would become int8 on a target, without any image. The last line is a verdict.

    MODEL is float or quantized already. The fields of --json are in docs/inspect.md.

    Examples:

      fullquant inspect MobileNetV3_large_x1_0_infer --target verisilicon_timvx

      fullquant inspect model.onnx --target onnxruntime --tensors
    """
    from fullquant.auto_compression.inspection import inspect_model
    from fullquant.cli.show_inspection import show_inspection
    from fullquant.placement.place import PlacementOptions

    show_log()
    with one_line_errors():
        found = inspect_model(
            model, target, image_size=img_size, output_name=output_name,  # type: ignore[arg-type]
            options=PlacementOptions(skip_patterns=tuple(not_quant_pattern or ())),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        show_inspection(output(), found, operators=operators, tensors=tensors)


@app.command()
def convert(
    model: Model,
    to: Annotated[str, typer.Option("--to", metavar="paddle-lite", help="The device runtime.")],
    valid_targets: Annotated[
        str,
        typer.Option(
            "--valid_targets", "--valid-targets", metavar="TARGETS", help="arm, x86, or verisilicon_timvx,arm."
        ),
    ] = "arm",
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The .nb. (default: model_<target>.nb beside MODEL)", show_default=False),
    ] = None,
    paddle_lite_opt: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The converter. (default: $FULLQUANT_PADDLE_LITE_OPT, else paddle_lite_opt on PATH)",
            show_default=False,
        ),
    ] = None,
    partition_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Operators to be kept off the NPU, in Paddle Lite's format.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Status 1 if anything fell back, changed, or would be computed wrongly.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Makes the file for devices of the int8 Paddle program that quantize wrote, and reads it back.

    The report, also as FILE.report.json, says which kernel or NPU subgraph each operator got, and why others did not.

    Examples:

      fullquant convert output --to paddle-lite --valid_targets verisilicon_timvx,arm --strict

      fullquant convert output --to paddle-lite --valid_targets arm --paddle-lite-opt lite/bin/paddle_lite_opt
    """
    if to != "paddle-lite":
        raise typer.BadParameter(f"--to {to}: paddle-lite is the only one")
    show_log()
    with one_line_errors():
        from fullquant.auto_compression.conversion import convert_to_paddle_lite
        from fullquant.cli.show_conversion import show_conversion

        made = convert_to_paddle_lite(
            model, valid_targets, output, converter=paddle_lite_opt, partition=partition_file
        )  # fmt: skip
        if as_json:
            typer.echo(made.report.read_text(encoding="utf-8"), nl=False)
        else:
            show_conversion(console_output(), made)
    if strict and made.audit.findings:
        raise typer.Exit(1)


app.command()(verify)
app.command()(benchmark)
