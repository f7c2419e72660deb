"""The networks that the step benchmarks know by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("FULLQUANT_ASSETS", _ROOT.parent / "shared" / "assets"))


@dataclass(frozen=True)
class Case:
    """A network with the batch and image size that it is measured at. model: what workers/ours.py reads."""

    name: str
    model: str
    batch: int
    height: int
    width: int

    @property
    def title(self) -> str:
        """Name, batch and size."""
        return f"{self.name}, batch {self.batch}, {self.height}x{self.width}"

    @property
    def arguments(self) -> list[str]:
        """The options that all workers have."""
        size = [str(self.height), str(self.width)]
        return ["--model", self.model, "--batch", str(self.batch), "--size", *size]


def _asset(name: str) -> str:
    return str(ASSETS / "models" / name)


# mobilenetv3_large is exported on the spot from workers/mobilenetv3.py: it needs no file.
KNOWN = {
    "mobilenetv3_large": Case("mobilenetv3_large", "mobilenetv3_large", 16, 224, 224),
    "mobilenetv3_large_cifar10": Case("mobilenetv3_large_cifar10", _asset("mobilenetv3_large_cifar10"), 16, 224, 224),
    "efficientnet_lite0_imagenet": Case(
        "efficientnet_lite0_imagenet", _asset("efficientnet_lite0_imagenet"), 16, 224, 224
    ),
    "mobilenetv3_small_ocr_cls": Case("mobilenetv3_small_ocr_cls", _asset("mobilenetv3_small_ocr_cls"), 32, 48, 192),
}


def case(name: str, batch: int | None = None, size: tuple[int, int] | None = None) -> Case:
    """A known network, or any model folder or file (batch 16 and 224x224 unless said otherwise)."""
    found = KNOWN.get(name) or Case(Path(name).name, name, 16, 224, 224)
    height, width = size or (found.height, found.width)
    return Case(found.name, found.model, batch or found.batch, height, width)


def size(text: str) -> tuple[int, int]:
    """ "224" or "48,192": height and width."""
    numbers = [int(part) for part in text.replace("x", ",").split(",")]
    return numbers[0], numbers[-1]
