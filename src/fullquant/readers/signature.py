"""What the canonical graph demands of a model's inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fullquant.errors import ModelError

_IMAGE_AXES = ("N", "C", "H", "W")


def check_signature(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises ModelError unless the model has one input and one output."""
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        if len(names) != 1:
            listed = ", ".join(repr(name) for name in names) or "none"
            raise ModelError(
                f"{path}: the model has {len(names)} {kind} ({listed}), an image classifier has one; "
                "export it with one image input and one output"
            )


def input_dims(
    path: Path, name: str, declared: Sequence[int], input_shape: Mapping[str, Sequence[int]]
) -> list[int | str]:
    """Sizes of the input: known ones as numbers, open ones (-1) as symbols, N C H W for images.

    input_shape replaces the declared shape. Raises ModelError where it names another input or has another rank.
    """
    unknown = sorted(set(input_shape) - {name})
    if unknown:
        raise ModelError(f"{path}: input_shape names {unknown[0]!r}, the model's input is {name!r}")
    if not declared:
        raise ModelError(f"{path}: input {name!r} is a single number, an image is needed; export an image classifier")
    dims = [int(size) for size in input_shape.get(name, declared)]
    if len(dims) != len(declared):
        raise ModelError(
            f"{path}: input_shape {dims} of {name!r} has {len(dims)} sizes, the model declares {list(declared)}"
        )
    symbols = _IMAGE_AXES if len(dims) == 4 else ("N", *(f"{name}_dim{axis}" for axis in range(1, len(dims))))
    return [size if size > 0 else symbol for size, symbol in zip(dims, symbols, strict=True)]
