"""Images as a data loader gives them. NumPy alone: the exporting side has another interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def normalised(pixels: Any) -> Any:
    """Pixels 0 to 255, channels last -> float32."""
    return ((np.asarray(pixels, np.float32) / 255 - MEAN) / DEVIATION).astype(np.float32)


def as_pixels(images: Any) -> Any:
    """Normalised images [N, 3, H, W], each number that of the nearest whole pixel value; same shape.

    Resizing normalised images gives any number; of some millions a few lie within float32 precision of half a step of
    the input's scale, and go to either side: Paddle multiplies by a rounded 127 / absmax where ONNX Runtime divides.
    Whole pixel values are 768 numbers.
    """
    last = np.moveaxis(np.asarray(images, np.float32), 1, -1)
    pixels = np.clip(np.rint((last * DEVIATION + MEAN) * 255), 0, 255)
    return np.ascontiguousarray(np.moveaxis(normalised(pixels), -1, 1))
