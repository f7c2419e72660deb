"""Padding: three Paddle operators that differ in the order of their numbers, one ONNX operator."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.readers.paddle_ops.context import OpContext

# Paddle's names of padding modes -> ONNX's
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "replicate": "edge", "circular": "wrap"}


def _pad(c: OpContext, begins: list[int], ends: list[int], mode: str, value: float) -> ir.Value:
    x = c.input("X")
    if mode not in _PAD_MODES:
        raise c.unsupported(f"padding mode {mode!r} is not known")
    pads = c.int64(begins + ends)
    if mode == "constant":
        return c.node("Pad", x, pads, c.scalar(value, x), mode="constant")
    return c.node("Pad", x, pads, mode=_PAD_MODES[mode])


def pad(c: OpContext) -> ir.Value:
    """Constant padding; the file has begin and end of each axis in turn."""
    paddings = c.integers("paddings")
    return _pad(c, paddings[::2], paddings[1::2], "constant", c.number("pad_value", 0.0))


def pad2d(c: OpContext) -> ir.Value:
    """Padding of an NCHW map: top, bottom, left, right."""
    _require_channel_first(c, "NCHW")
    top, bottom, left, right = c.known_integers("paddings", "Paddings", "PaddingsList")
    return _pad(c, [0, 0, top, left], [0, 0, bottom, right], c.text("mode", "constant"), c.number("pad_value", 0.0))


def pad3d(c: OpContext) -> ir.Value:
    """Padding of an NCDHW map: left, right, top, bottom, front, back."""
    _require_channel_first(c, "NCDHW")
    left, right, top, bottom, front, back = c.known_integers("paddings", "Paddings", "PaddingsList")
    begins, ends = [0, 0, front, top, left], [0, 0, back, bottom, right]
    return _pad(c, begins, ends, c.text("mode", "constant"), c.number("pad_value", c.number("value", 0.0)))


def _require_channel_first(c: OpContext, layout: str) -> None:
    found = c.text("data_format", layout)
    if found != layout:
        raise c.unsupported(
            f"layout {found} is not read, only {layout} is", f"export the model with data_format={layout!r}"
        )
