"""A line chart as inline SVG: no script, no font, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 28, 36
_SMALLEST, _LARGEST = 1e-100, 1e100  # values beyond are zero and infinity to a chart; arithmetic stays finite
_MOST_POINTS = 1200  # more would only make the file large: the chart is 554 pixels wide


def line_chart(points: Sequence[tuple[float, float]], title: str, x_title: str, *, markers: bool = False) -> str:
    """SVG of one series (x, y), x ascending; values that are not finite are left out. Empty with fewer than two."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and abs(y) < _LARGEST]
    if len(finite) < 2:
        return ""
    stride = -(-len(finite) // _MOST_POINTS)
    shown = finite[::stride] if finite[::stride][-1] == finite[-1] else [*finite[::stride], finite[-1]]
    x_ticks = ticks(shown[0][0], shown[-1][0])
    y_ticks = ticks(min(y for _, y in finite), max(y for _, y in finite))
    x_range = (shown[0][0], max(shown[-1][0], shown[0][0] + 1e-9))
    y_range = (min(y_ticks[0], min(y for _, y in finite)), max(y_ticks[-1], max(y for _, y in finite)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>')
    for value in y_ticks:
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, _ = place(value, y_range[0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>')
    placed = [place(x, y) for x, y in shown]
    parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>')
    if markers:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{value[0]:g}: {value[1]:.6g}</title></circle>'
            for (x, y), value in zip(placed, shown, strict=True)
        ]
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`, at most about `most`."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < _SMALLEST:
        low, high = low - (size if size >= _SMALLEST else 1) / 2, high + (size if size >= _SMALLEST else 1) / 2
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
