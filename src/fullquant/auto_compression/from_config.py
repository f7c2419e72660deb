"""The whole job from one configuration: what run.py and `fullquant quantize` do."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullquant.auto_compression.api import AutoCompression, CompressionResult
from fullquant.auto_compression.embedded import resolve_embedded
from fullquant.auto_compression.loaders import (
    image_sizes,
    images_of_split,
    train_loader,
    validation_loader,
    with_image,
)
from fullquant.config import Augment, Config, Global, load_config
from fullquant.config.global_section import resize_for
from fullquant.config.learning_rate import CosineAnnealingDecay
from fullquant.data import ImageLoader
from fullquant.distributed import World, joined
from fullquant.readers import find_model, read_model

log = logging.getLogger("fullquant")

# Without a configuration file: the values that the shipped configurations of trained models share.
_PTQ: Mapping[str, Any] = {"QuantPost": {"algo": "auto", "bias_correction": True, "batch_nums": 16}}
_QAT: Mapping[str, Any] = {
    "Distillation": {"loss": "soft_label"},
    "QuantAware": {"calibration": {"observer": "auto"}},
    "TrainConfig": {
        "train_iter": 300,
        "eval_iter": 100,
        "learning_rate": {"type": "CosineAnnealingDecay", "learning_rate": 5e-5},
        "optimizer_builder": {"optimizer": {"type": "Adam"}, "weight_decay": 0.0},
    },
}


def quantize(
    config: str | Path | Mapping[str, Any] | Config,
    save_dir: str | Path = "./output",
    *,
    total_images: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> CompressionResult:
    """Quantizes the model of a configuration on its images, and writes the integer files and the report.

    config: YAML file, mapping of sections, or Config; Global.model_dir and Global.data_dir say where model and images
        are.
    save_dir: gets the Paddle pair, model_int8.onnx, report.json and report.html.
    total_images: as in PaddleSlim's run.py, the number of training images that the cosine schedule spans: T_max of
        CosineAnnealingDecay becomes ceil(total_images / batch_size). None: T_max as written, else the steps of the run.
    device: "cpu", "gpu", "cuda:1"; None takes the GPU where there is one.

    Under torchrun or paddle.distributed.launch each process calls this, and process 0 writes the files.
    Raises ConfigError, ModelError and DataError (all FullquantError) for wrong settings, models and data.
    """
    with joined(device) as (world, own_device):
        return _quantize(config, save_dir, total_images, own_device, progress and world.first, world)


def _quantize(
    config: str | Path | Mapping[str, Any] | Config, save_dir: str | Path, total_images: int | None,
    device: str | None, progress: bool, world: World,
) -> CompressionResult:  # fmt: skip
    settings = config if isinstance(config, Config) else load_config(config)
    settings = world.first_on_node(lambda: resolve_embedded(settings, progress=progress))
    settings = _spanned(settings, total_images, world.size)
    section = with_image_of_model(settings.global_section)  # the model is looked at before any image
    settings = replace(settings, global_section=section)
    with contextlib.ExitStack() as stack:
        train = stack.enter_context(_training_images(settings, world))
        validation = _validation(section, world)
        if validation is not None:
            stack.enter_context(validation)
        job = AutoCompression(
            section.model_path, train, section.model_filename, section.params_filename, save_dir, settings,
            eval_dataloader=validation, device=device, progress=progress,
        )  # fmt: skip
        return job.compress()


def default_config(model_dir: str | Path, data_dir: str | Path, *, ptq: bool = False, **given: Any) -> Config:
    """A configuration for a model and a folder of images, without a YAML file.

    The image size is that of the model's input, 224 where it is free; the preprocessing is ImageNet's. given: keys of
    Global that say otherwise. ptq: calibrate only; else 300 steps of training (Adam, cosine from 5e-5).
    """
    keys = dict(given)
    if "img_size" in keys:
        keys.setdefault("resize_size", resize_for(*keys["img_size"]))
    if not keys.get("keep_ratio_pad"):
        keys.setdefault("augment", Augment(area=(0.5, 1.0)))
    else:
        keys.setdefault("augment", Augment("none", False))
    section = with_image_of_model(Global(model_dir=str(model_dir), data_dir=str(data_dir), **keys))
    return replace(load_config(_PTQ if ptq else _QAT), global_section=section)


def with_image_of_model(section: Global) -> Global:
    """The section with the img_size and the channel_order of its model where they are not given.

    The model is read only where something is asked of it. Raises ModelError where it is not there.
    """
    files = find_model(section.model_path, section.model_filename, section.params_filename)
    known = section.input_shape is not None and min(section.input_shape[1:]) > 0
    if known or (section.img_size is not None and section.channel_order is not None):
        return with_image(section, None, files.model)
    model = read_model(
        section.model_path, section.model_filename, section.params_filename, output_name=section.output_name
    )
    return with_image(section, (image_sizes(model.graph.inputs[0]) or ())[1:], files.model)


def _spanned(config: Config, total_images: int | None, processes: int) -> Config:
    """The cosine over total_images; said to be without effect where there is no cosine."""
    if total_images is None:
        return config
    rate = config.train.learning_rate
    if config.strategy != "qat" or not isinstance(rate, CosineAnnealingDecay):
        log.warning("total_images is the length of a CosineAnnealingDecay, which this configuration does not have")
        return config
    steps = max(1, math.ceil(total_images / (config.global_section.batch_size * processes)))
    log.info(
        "learning rate: T_max %d = %d images / batch size%s", steps, total_images, " of all processes" * (processes > 1)
    )
    return replace(config, train=replace(config.train, learning_rate=replace(rate, T_max=steps)))


def _training_images(config: Config, world: World) -> ImageLoader:
    """Batches to train on. For calibration alone fewer images than one batch are enough."""
    section = config.global_section
    if config.strategy == "ptq":
        count = len(images_of_split(section, "train", world))
        return train_loader(replace(section, batch_size=min(section.batch_size, count)))
    return train_loader(section, world)


def _validation(section: Global, world: World) -> ImageLoader | None:
    """The validation images; None where the data folder has none and no list is named."""
    folder = Path(section.data_dir or "")
    if section.val_list is None and not ((folder / "val_list.txt").is_file() or (folder / "val").is_dir()):
        log.warning("no validation images in %s (looked for val_list.txt and val/)", folder)
        return None
    return validation_loader(section, world=world)
