"""Options that several commands of `fullquant` have, and the configuration that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullquant.cli.console import number_list, size

if TYPE_CHECKING:
    from fullquant.config import Config

_IMAGES = "How images become the model's input"
Rgb = tuple[float, ...]

Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder with train_list.txt and val_list.txt, or train/ and val/."),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML file; the options given here win over it.")
]
Mean = Annotated[
    Any | None,
    typer.Option(
        parser=number_list("--mean", (1, 3)), metavar="A,B,C", help="Subtracted after --scale.", rich_help_panel=_IMAGES
    ),
]
Std = Annotated[
    Any | None,
    typer.Option(parser=number_list("--std", (1, 3)), metavar="A,B,C", help="Divides then.", rich_help_panel=_IMAGES),
]
Scale = Annotated[
    float | None, typer.Option(help="Multiplies the pixel, 0 to 255. (default: 1/255)", rich_help_panel=_IMAGES)
]
ImgSize = Annotated[
    Any | None,
    typer.Option(
        "--img-size", parser=size, metavar="H[,W]", help="Size of the model's input.", rich_help_panel=_IMAGES
    ),
]
ResizeSize = Annotated[
    int | None,
    typer.Option(help="Length of the short side before the centre is cropped.", min=1, rich_help_panel=_IMAGES),
]
ChannelOrder = Annotated[str | None, typer.Option(help="rgb, bgr or grey.", rich_help_panel=_IMAGES)]
Interpolation = Annotated[
    str | None, typer.Option(help="lanczos, bicubic, bilinear, bilinear_noaa, ...", rich_help_panel=_IMAGES)
]
KeepRatioPad = Annotated[
    bool | None,
    typer.Option("--keep-ratio-pad", help="Keep the ratio and fill up on the right.", rich_help_panel=_IMAGES),
]
OutputName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The output with the classes, where the model has several.")
]
VerifyImages = Annotated[
    int | None,
    typer.Option(
        "--verify-images",
        min=0,
        help="On how many images, at most, the written files are run in every runtime; 0: they are not run. "
        "(default: 2000)",
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Images in a batch. (default: 32)", min=1)]
Workers = Annotated[int | None, typer.Option(help="Processes that read images. (default: 0, this one)", min=0)]
Devices = Annotated[
    str | None, typer.Option("--devices", metavar="gpu|cpu", help="Where to train. (default: gpu where there is one)")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also log what each pass does.")]


def _not_in_every_name(patterns: list[str] | None) -> list[str] | None:
    if patterns and not all(patterns):
        raise typer.BadParameter("'' is part of every name; leave the option out to keep no operator float")
    return patterns


NotQuantPattern = Annotated[
    list[str] | None,
    typer.Option(help="Operators with this in their name stay float; may be repeated.", callback=_not_in_every_name),
]


def image_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of Global from options; those that were not given are left out."""
    return {key: value for key, value in values.items() if value is not None}


def made_config(model: str, data: str | None, config: str | None, keys: dict[str, Any], *, ptq: bool = False) -> Config:
    """The configuration file with the options in place of its keys; without a file, defaults and --data."""
    from fullquant.auto_compression.from_config import default_config
    from fullquant.config import load_config

    if config is None:
        if data is None:
            raise typer.BadParameter("give --data, the folder of the images, or --config, a YAML file that names it")
        return default_config(model, data, ptq=ptq, **keys)
    loaded = load_config(config)
    section = loaded.global_section.with_model(model)
    if data is not None:
        section = replace(section, data_dir=data, train_list=None, val_list=None)
    loaded = replace(loaded, global_section=replace(section, **keys))
    return _calibrated_only(loaded) if ptq else loaded


def with_quantization(config: Config, keys: dict[str, Any]) -> Config:
    """target, reduce_range, not_quant_pattern into QuantAware or QuantPost, whichever there is."""
    keys = {key: value for key, value in keys.items() if value is not None}
    if not keys:
        return config
    if config.quant_aware is not None:
        return replace(config, quant_aware=replace(config.quant_aware, **keys))
    if config.quant_post is not None:
        return replace(config, quant_post=replace(config.quant_post, **keys))
    return config


def with_training(config: Config, steps: int | None, learning_rate: float | None, resume: bool) -> Config:
    """TrainConfig with the number of steps and the rate; a schedule keeps its form."""
    if config.quant_post is not None and (resume or steps is not None or learning_rate is not None):
        raise typer.BadParameter(
            "--steps, --learning-rate and --resume belong to training, which --ptq (or QuantPost) does not have"
        )
    keys: dict[str, Any] = {"resume": True} if resume else {}
    if steps is not None:
        keys.update(train_iter=steps, epochs=None, eval_iter=min(config.train.eval_iter, steps))
    if learning_rate is not None:
        keys["learning_rate"] = _rate(config.train.learning_rate, learning_rate)
    return replace(config, train=replace(config.train, **keys)) if keys else config


def _rate(schedule: Any, value: float) -> Any:
    names = {field.name for field in dataclasses.fields(schedule)} if dataclasses.is_dataclass(schedule) else set()
    if "learning_rate" in names and isinstance(schedule.learning_rate, float):
        return replace(schedule, learning_rate=value)
    if not names:
        return value
    raise typer.BadParameter(f"--learning-rate does not fit the schedule {schedule.SECTION}; change it in the file")


def _calibrated_only(config: Config) -> Config:
    """QuantAware without its training: the same tensors and the same way to find scales, as QuantPost."""
    from fullquant.config import QuantPost

    aware = config.quant_aware
    if aware is None:
        return (
            config
            if config.quant_post is not None
            else replace(config, quant_post=QuantPost(algo="auto", bias_correction=True))
        )
    observer = aware.observer
    images = observer.images or 512
    post = QuantPost(
        quantize_op_types=aware.op_types or QuantPost().quantize_op_types,
        is_full_quantize=aware.op_types is None,
        weight_quantize_type=aware.weight_quantize_type,
        onnx_format=aware.onnx_format,
        not_quant_pattern=aware.not_quant_pattern,
        target=aware.target_for() if aware.for_tensorrt else aware.target,
        reduce_range=aware.reduce_range,
        algo={"auto": "auto", "mse": "mse", "percentile": "hist"}.get(observer.name, "abs_max"),  # type: ignore[arg-type]
        bias_correction=True,
        hist_percent=observer.percentile,
        batch_size=32,
        batch_nums=-(-images // 32),
    )
    return replace(config, quant_aware=None, quant_post=post)
