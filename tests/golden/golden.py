"""Texts that a change must be meant to change."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def golden(name: str, text: str) -> None:
    """Compares with tests/golden/<name>.txt; FULLQUANT_UPDATE_GOLDEN=1 writes that file instead."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("FULLQUANT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
