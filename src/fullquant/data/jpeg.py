"""JPEG files decoded at a half, a quarter or an eighth of their size, by the scaled inverse DCT of libjpeg."""

from __future__ import annotations

from PIL import Image

_REDUCTIONS = (8, 4, 2)  # what Pillow's draft offers of libjpeg's factors


def reduction(width: float, height: float, least_width: int, least_height: int) -> int:
    """The largest s of 1, 2, 4, 8 with width / s >= least_width and height / s >= least_height; 1 if there is none."""
    for factor in _REDUCTIONS:
        if width >= factor * least_width and height >= factor * least_height:
            return factor
    return 1


def reduce(image: Image.Image, factor: int) -> int:
    """Let an opened, not yet decoded JPEG decode at 1 / `factor` of its size; returns the factor that now holds.

    Pixel (x, y) becomes (x / factor, y / factor): a pixel of the result is the mean of a block of factor^2 pixels, up
    to the frequencies that the file has inside the block; both sides are rounded up. 1, and the image as it was, for
    any other format and for pixels in memory.
    """
    if factor == 1:
        return 1
    # Pillow takes the largest factor at which neither side falls below what is asked for
    image.draft(None, (image.width // factor, image.height // factor))
    decoder = getattr(image, "decoderconfig", None)
    return int(decoder[0]) if decoder else 1
