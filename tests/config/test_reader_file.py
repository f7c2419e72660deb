"""Global.reader_config: a PaddleClas reader file as keys of Global."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fullquant.config import Augment, Global
from fullquant.errors import ConfigError

NORMALIZE = {"scale": "1.0/255.0", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "order": ""}
READER: dict[str, Any] = {
    "DataLoader": {
        "Train": {
            "dataset": {
                "image_root": "./set/",
                "cls_label_path": "./set/lists/train.txt",
                "transform_ops": [
                    {"DecodeImage": {"to_rgb": False}},
                    {"RandCropImage": {"size": 224}},
                    {"RandFlipImage": {"flip_code": 1}},
                    {"NormalizeImage": NORMALIZE},
                ],
            },
            "loader": {"num_workers": 4},
        },
        "Eval": {
            "dataset": {
                "image_root": "./set/",
                "cls_label_path": "./set/val.txt",
                "transform_ops": [
                    {"DecodeImage": {"to_rgb": False}},
                    {"ResizeImage": {"resize_short": 256}},
                    {"CropImage": {"size": 224}},
                    {"NormalizeImage": NORMALIZE},
                    {"ToCHWImage": None},
                ],
            }
        },
    }
}


def _read(folder: Path, reader: dict[str, Any], **keys: Any) -> Global:
    path = folder / "reader.yml"
    path.write_text(yaml.safe_dump(reader), encoding="utf-8")
    return Global.from_mapping({"reader_config": str(path), **keys})


def test_fills_the_keys(tmp_path: Path) -> None:
    section = _read(tmp_path, READER, batch_size=16)
    assert (section.data_dir, section.train_list, section.val_list) == ("./set/", "lists/train.txt", "val.txt")
    assert (section.img_size, section.resize_size, section.interpolation) == ((224, 224), 256, "bilinear_noaa")
    assert (section.scale, section.mean, section.std) == (1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (section.channel_order, section.workers, section.batch_size) == ("bgr", 4, 16)
    assert section.augment == Augment()


def test_written_keys_win(tmp_path: Path) -> None:
    section = _read(tmp_path, READER, data_dir="other", augment=False, workers=0)
    assert (section.data_dir, section.augment, section.workers) == ("other", Augment("none", False), 0)


def _changed(mode: str, operator: str, arguments: Any) -> dict[str, Any]:
    """The reader file with one operator's arguments replaced, or the operator added."""
    reader = copy.deepcopy(READER)
    listed = reader["DataLoader"][mode]["dataset"]["transform_ops"]
    listed[:] = [item for item in listed if operator not in item] + [{operator: arguments}]
    return reader


def _without(mode: str, operator: str, reader: dict[str, Any] = READER) -> dict[str, Any]:
    """The reader file without one operator."""
    reader = copy.deepcopy(reader)
    listed = reader["DataLoader"][mode]["dataset"]["transform_ops"]
    listed[:] = [item for item in listed if operator not in item]
    return reader


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (_changed("Train", "AutoAugment", {}), "no rule for 'AutoAugment'"),
        (_changed("Train", "RandFlipImage", {"flip_code": 0}), "RandFlipImage.flip_code"),
        (_changed("Train", "NormalizeImage", {"scale": 1.0}), "NormalizeImage differs between Train and Eval"),
        (_changed("Eval", "ResizeImage", {"size": "224"}), "ResizeImage.size: '224' is neither"),
        (_changed("Eval", "ResizeImage", {}), "ResizeImage.size: None is neither"),
        (_changed("Eval", "ResizeImage", 224), "ResizeImage: 224 is not a mapping of its arguments"),
        (
            _changed("Eval", "ResizeImage", {"resize_short": 256, "interpolation": "area"}),
            "area of cv2 has no counterpart",
        ),
        (_changed("Eval", "CropImage", {}), "CropImage.size: None is neither"),
        (_without("Eval", "CropImage"), "needs CropImage"),
        ({"DataLoader": {"Train": {}}}, "section 'Eval' is missing"),
        ({"Reader": {}}, "section 'DataLoader' is missing"),
        (
            {"DataLoader": {"Train": {"dataset": {"transform_ops": [3]}}, "Eval": {"dataset": {}}}},
            "3 is not one operator",
        ),
        ({"DataLoader": {"Train": {"dataset": {}}, "Eval": {"dataset": {}}}}, "transform_ops is missing"),
    ],
)
def test_mistakes(tmp_path: Path, reader: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, reader)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"Global.reader_config: {tmp_path / 'reader.yml'}: ")


def test_lists_and_root(tmp_path: Path) -> None:
    reader = copy.deepcopy(READER)
    reader["DataLoader"]["Eval"]["dataset"]["image_root"] = "./elsewhere"
    with pytest.raises(ConfigError, match="image_root must be the same folder"):
        _read(tmp_path, reader)
    reader = copy.deepcopy(READER)
    del reader["DataLoader"]["Eval"]["dataset"]["cls_label_path"]
    with pytest.raises(ConfigError, match="cls_label_path is missing"):
        _read(tmp_path, reader)


def test_without_crop_and_flip_and_with_pillow(tmp_path: Path) -> None:
    reader = _changed("Eval", "ResizeImage", {"resize_short": 240, "interpolation": "bicubic", "backend": "pil"})
    listed = reader["DataLoader"]["Train"]["dataset"]["transform_ops"]
    listed[:] = [item for item in listed if "NormalizeImage" in item]
    section = _read(tmp_path, reader)
    assert section.augment == Augment("none", False)
    assert (section.interpolation, section.resize_size) == ("bicubic", 240)


def test_an_exact_size_is_resize_size(tmp_path: Path) -> None:
    """PaddleClas writes [width, height], Global [height, width]; without a crop it is the size of the input too."""
    squeezed = _changed("Eval", "ResizeImage", {"size": [320, 256]})
    section = _read(tmp_path, squeezed)
    assert (section.img_size, section.resize_size) == ((224, 224), (256, 320))
    section = _read(tmp_path, _without("Eval", "CropImage", squeezed))
    assert (section.img_size, section.resize_size) == ((256, 320), (256, 320))
    section = _read(tmp_path, _changed("Eval", "ResizeImage", {"size": 256}))
    assert section.resize_size == (256, 256)
    section = _read(tmp_path, _changed("Eval", "ResizeImage", {"size": 256, "resize_short": 288}))
    assert section.resize_size == 288


def test_a_crop_of_two_sizes_and_no_resizing(tmp_path: Path) -> None:
    section = _read(tmp_path, _changed("Eval", "CropImage", {"size": [192, 48]}))
    assert section.img_size == (48, 192)
    section = _read(tmp_path, _without("Eval", "ResizeImage"))
    assert (section.img_size, section.resize_size) == ((224, 224), None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backend": "PIL", "interpolation": "Lanczos"}, "lanczos"),
        ({"backend": "pil"}, "bicubic"),  # Pillow's own default
        ({"backend": "cv2"}, "bilinear_noaa"),
    ],
)
def test_interpolation(tmp_path: Path, arguments: dict[str, Any], expected: str) -> None:
    section = _read(tmp_path, _changed("Eval", "ResizeImage", {"resize_short": 256, **arguments}))
    assert section.interpolation == expected


def test_area_and_ratio_of_the_crop(tmp_path: Path) -> None:
    crop = {"size": 224, "scale": [0.5, 1.0], "ratio": [0.9, 1.1]}
    section = _read(tmp_path, _changed("Train", "RandCropImage", crop))
    assert section.augment == Augment(area=(0.5, 1.0), ratio=(0.9, 1.1))


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"Global\.reader_config: no/such\.yml: no such configuration file"):
        Global.from_mapping({"reader_config": "no/such.yml"})
