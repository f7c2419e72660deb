"""Where the stages meet: read, place, calibrate, train, write, verify, report. Names are imported when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullquant.auto_compression.api import AutoCompression, CompressionResult

__all__ = ["AutoCompression", "CompressionResult"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("fullquant.auto_compression.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
