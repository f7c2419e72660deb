"""Small generated image sets, so that these tests need no assets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 JPEGs of assorted sizes under `images/`, with train_list.txt and val_list.txt (labels 0..4)."""
    root = tmp_path_factory.mktemp("image set")  # the space is on purpose
    (root / "images").mkdir()
    random = np.random.default_rng(7)
    lines = []
    for index in range(37):
        height, width = random.integers(30, 90, 2)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((int(width), int(height))).save(root / "images" / f"{index:02d}.jpg")
        lines.append(f"images/{index:02d}.jpg {index % 5}\n")
    for split in ("train", "val"):
        (root / f"{split}_list.txt").write_text("".join(lines))
    return root
