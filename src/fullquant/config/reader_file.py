"""Global.reader_config: the data reader file of PaddleClas (DataLoader.Train, DataLoader.Eval), as keys of Global.

PaddleSlim's ViT example names such a file. The transforms of a classifier's evaluation are read; one that has no
counterpart here is an error, never silently left out. Source: PaddleClas 2.5, ppcls/data/preprocess/ops/operators.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fullquant.config.document import read_document
from fullquant.errors import ConfigError

_TRAIN_OPERATORS = (
    "DecodeImage",
    "RandCropImage",
    "RandFlipImage",
    "ResizeImage",
    "CropImage",
    "NormalizeImage",
    "ToCHWImage",
)
_EVAL_OPERATORS = ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage")


def read_reader_file(path: str, where: str) -> dict[str, object]:
    """The keys of Global that a PaddleClas reader file stands for. ConfigError names the file and the part at fault."""
    try:
        document = read_document(path)
        loader = _part(document, "DataLoader")
        train, evaluation = _part(loader, "Train"), _part(loader, "Eval")
        train_operators = _operators(train, _TRAIN_OPERATORS)
        operators = _operators(evaluation, _EVAL_OPERATORS)
        keys: dict[str, object] = {**_lists(train, evaluation), **_image_keys(operators)}
        keys["augment"] = _augment(train_operators)
        _check_same_normalization(train_operators, operators)
        workers = _part(train, "loader", optional=True).get("num_workers")
        return keys if workers is None else {**keys, "workers": workers}
    except ConfigError as error:
        text = str(error)
        raise ConfigError(f"{where}: {text}" if path in text else f"{where}: {path}: {text}") from None


def _part(document: Mapping[str, Any], key: str, optional: bool = False) -> Mapping[str, Any]:
    value = document.get(key)
    if value is None and optional:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"section {key!r} is missing, or not a mapping")
    return value


def _operators(mode: Mapping[str, Any], known: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    listed = _part(mode, "dataset").get("transform_ops")
    if not isinstance(listed, list):
        raise ConfigError("dataset.transform_ops is missing, or not a list")
    found: dict[str, Mapping[str, Any]] = {}
    for item in listed:
        if not isinstance(item, Mapping) or len(item) != 1:
            raise ConfigError(f"transform_ops: {item!r} is not one operator with its arguments")
        ((name, arguments),) = item.items()
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(f"transform_ops: {name}: {arguments!r} is not a mapping of its arguments")
        if name not in known:
            raise ConfigError(
                f"transform_ops: no rule for {name!r} (known: {', '.join(known)}); write its effect in Global"
            )
        found[str(name)] = arguments or {}
    return found


def _lists(train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, object]:
    """data_dir is the training set's image_root; the list files are given relative to it, as Global wants them."""
    train_set, val_set = _part(train, "dataset"), _part(evaluation, "dataset")
    root = train_set.get("image_root")
    if not isinstance(root, str) or val_set.get("image_root") != root:
        raise ConfigError(
            "dataset.image_root must be the same folder in Train and Eval; write data_dir in Global instead"
        )
    lists = {}
    for key, dataset in (("train_list", train_set), ("val_list", val_set)):
        path = dataset.get("cls_label_path")
        if not isinstance(path, str):
            raise ConfigError("dataset.cls_label_path is missing")
        lists[key] = os.path.relpath(path, root)
    return {"data_dir": root, **lists}


def _image_keys(operators: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    keys: dict[str, object] = {}
    decode = operators.get("DecodeImage", {})
    keys["channel_order"] = "rgb" if decode.get("to_rgb", True) else "bgr"
    keys |= _sizes(operators.get("ResizeImage"), operators.get("CropImage"))
    if "ResizeImage" in operators:
        keys["interpolation"] = _interpolation(operators["ResizeImage"])
    for name in ("mean", "std", "scale"):
        value = operators.get("NormalizeImage", {}).get(name)
        if value is not None:
            keys[name] = value
    return keys


def _sizes(resize: Mapping[str, Any] | None, crop: Mapping[str, Any] | None) -> dict[str, object]:
    """img_size and resize_size. Without ResizeImage nothing is resized; without CropImage its `size` is the input's."""
    resized: object = None
    exact = False
    if resize is not None:
        exact = not resize.get("resize_short")
        resized = _height_width(resize.get("size"), "ResizeImage.size") if exact else resize["resize_short"]
    if crop is not None:
        return {"img_size": _height_width(crop.get("size"), "CropImage.size"), "resize_size": resized}
    if not exact:
        raise ConfigError("Eval needs CropImage with its size, or ResizeImage with size in place of resize_short")
    return {"img_size": resized, "resize_size": resized}


def _height_width(size: object, name: str) -> tuple[object, object]:
    """(height, width). PaddleClas's lists are [width, height]; one number is both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2:
        return size[1], size[0]
    raise ConfigError(f"{name}: {size!r} is neither a number nor [width, height]")


def _interpolation(resize: Mapping[str, Any]) -> object:
    """PaddleClas resizes with OpenCV, bilinear by default, or with Pillow, whose default is bicubic."""
    backend = str(resize.get("backend") or "cv2").lower()
    name = str(resize.get("interpolation") or ("bicubic" if backend == "pil" else "bilinear")).lower()
    if backend == "pil":
        return name
    if backend != "cv2" or name != "bilinear":
        raise ConfigError(f"ResizeImage: {name} of {backend} has no counterpart; write interpolation in Global instead")
    return "bilinear_noaa"


def _augment(operators: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Global.augment: the crop with its `scale` (share of the image) and `ratio`, and the flip."""
    flip, crop = operators.get("RandFlipImage"), operators.get("RandCropImage")
    keys: dict[str, object] = {"crop": "none" if crop is None else "random_resized"}
    keys["flip"] = flip is not None and _horizontal(flip)
    for name, key in (("scale", "area"), ("ratio", "ratio")):
        if crop is not None and crop.get(name) is not None:
            keys[key] = crop[name]
    return keys


def _horizontal(flip: Mapping[str, Any]) -> bool:
    if flip.get("flip_code", 1) != 1:
        raise ConfigError("RandFlipImage.flip_code: only 1 (left and right) has a counterpart")
    return True


def _check_same_normalization(train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    def numbers(operators: Mapping[str, Any]) -> dict[str, Any]:
        return {key: operators.get("NormalizeImage", {}).get(key) for key in ("mean", "std", "scale")}

    if numbers(train) != numbers(evaluation):
        raise ConfigError("NormalizeImage differs between Train and Eval; the model has one input")
