"""Random images with the statistics of normalised photographs: smooth shapes and a little noise. NumPy only."""

from __future__ import annotations

import numpy as np

# A step must not see the same batch each time, or scales and caches would settle on it.
BATCHES = 4


def image_batch(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [batch, 3, height, width], about normal, within [-2.2, 2.7] as after ImageNet's normalisation."""
    random = np.random.default_rng(seed)
    patch = max(4, min(height, width) // 8)
    coarse = random.standard_normal((batch, 3, -(-height // patch), -(-width // patch)))
    shapes = coarse.repeat(patch, axis=2).repeat(patch, axis=3)[:, :, :height, :width]
    noise = random.standard_normal((batch, 3, height, width))
    return np.clip(shapes + 0.2 * noise, -2.2, 2.7).astype(np.float32)


def image_batches(batch: int, height: int, width: int, count: int = BATCHES) -> list[np.ndarray]:
    """`count` different batches, the same in every process."""
    return [image_batch(batch, height, width, seed) for seed in range(count)]
