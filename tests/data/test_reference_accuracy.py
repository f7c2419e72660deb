"""The preprocessing reproduces the accuracies that the assets record, in ONNX Runtime's or Paddle's hands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullquant.data.images import Preprocess
from fullquant.data.lists import find_images
from fullquant.data.loader import ImageLoader
from fullquant.data.textlines import ensure_textlines

paddle_inference: Any = pytest.importorskip("paddle.inference")


def _predictor(folder: Path) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    config = paddle_inference.Config(str(next(folder.glob("*.pdmodel"))), str(next(folder.glob("*.pdiparams"))))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    predictor = paddle_inference.create_predictor(config)
    feed = predictor.get_input_handle(predictor.get_input_names()[0])
    fetch = predictor.get_output_handle(predictor.get_output_names()[0])

    def predict(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        feed.copy_from_cpu(images)
        predictor.run()
        return np.asarray(fetch.copy_to_cpu())

    return predict


def _top1(folder: Path, loader: ImageLoader) -> float:
    predict = _predictor(folder)
    right = [predict(images).argmax(axis=1) == labels for images, labels in loader]
    return float(np.concatenate(right).mean())


def test_cifar_with_opencv_resizing(assets: Path) -> None:
    preprocess = Preprocess(64, (64, 64), interpolation="bilinear_noaa")
    loader = ImageLoader(find_images(assets / "cifar10", "val"), preprocess, 50)
    assert _top1(assets / "models/mobilenetv3_large_cifar10", loader) == pytest.approx(0.7470, abs=1e-4)


@pytest.mark.slow
def test_imagenet_without_resizing(assets: Path) -> None:
    preprocess = Preprocess(224, None, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    loader = ImageLoader(find_images(assets / "imagenet_mini", "val"), preprocess, 50)
    assert _top1(assets / "models/efficientnet_lite0_imagenet", loader) == pytest.approx(0.82125, abs=1e-4)


def test_text_lines_are_hard_enough(ocr_model_dir: Path, tmp_path: Path) -> None:
    """95 to 97 of 100: a float model that makes mistakes, so that what quantization costs can be seen."""
    folder = ensure_textlines(tmp_path / "lines", train=0, val=600, progress=False)
    loader = ImageLoader(find_images(folder, "val"), Preprocess.text_line(), 50)
    assert 0.945 < _top1(ocr_model_dir, loader) < 0.975
