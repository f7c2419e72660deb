"""Observers: from the values of a tensor to the range that its integers should cover.

An observer sees the tensor's float values batch by batch, as one-dimensional arrays, and ends in QParams.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fullquant.distributed import World
from fullquant.errors import ConfigError, FullquantError
from fullquant.numerics.qparams import QParams, QuantSpec, symmetric
from fullquant.runtime import kernels

Array = npt.NDArray[np.float32]

# A tensor that is zero on every calibration image still needs a step; any will do, and this one keeps biases in int32.
_SMALLEST_RANGE = 1e-5
# The reach of a histogram is rounded up to a power of two, which may double it.
_BINS = 8192
_LARGEST_VALUE = 2.0**126
# Of a part with more than 2**18 values about 2**16 are counted; all are looked at for the range.
_ALL_COUNTED, _COUNTED = 1 << 18, 1 << 16
# Channels are often multiples of 2, 3, 5 and 7.
_SMALLEST_STEP = 11


class Observer(Protocol):
    """Collects one tensor's values."""

    def update(self, values: Array, more: bool = False) -> None:
        """One batch, flat, or a part of it: with `more`, another part of the same batch follows."""

    def merge(self, world: World) -> None:
        """Makes it what one process would have that had seen the batches of all, each of them its `own` share."""

    def qparams(self, spec: QuantSpec) -> QParams:
        """The grid placed on what was seen."""


def qparams_of_range(low: float, high: float, spec: QuantSpec) -> QParams:
    """The grid that covers [low, high], 0 included.

    Symmetric: scale = max(|low|, |high|) / qmax. Affine: scale = (high - low) / (qmax - qmin),
    zero_point = qmin - low / scale, rounded (Jacob et al. 2018, arXiv:1712.05877, section 2.1) to an even number: a
    kernel that adds the zero point before it rounds half to even then rounds as one that adds it afterwards
    (decision 0019).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FullquantError(f"calibration saw values from {low} to {high}: the float model overflows on these images")
    if spec.symmetric:
        return symmetric(spec, max(-low, high, _SMALLEST_RANGE) / spec.qmax)
    scale = spec.nearest_scale(max(high - low, _SMALLEST_RANGE) / (spec.qmax - spec.qmin))
    zero_point = int(np.clip(2 * np.rint((spec.qmin - low / scale) / 2), _even(spec.qmin, 1), _even(spec.qmax, -1)))
    return QParams(spec, np.asarray(scale), np.asarray(zero_point))


def _even(end: int, inwards: int) -> int:
    return end + inwards * (end % 2)


class MinMaxObserver:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Array, more: bool = False) -> None:
        low, high = kernels.value_range(values)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, world: World) -> None:
        self.low, self.high = float(world.min(self.low)), float(world.max(self.high))

    def qparams(self, spec: QuantSpec) -> QParams:
        return qparams_of_range(self.low, self.high, spec)


class MovingAverageObserver:
    """state = rate * state + (1 - rate) * range of the batch, for both ends; the first batch starts it.

    rate: `moving_rate` of the configuration (PaddleSlim's default 0.9).
    """

    def __init__(self, rate: float = 0.9) -> None:
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"moving_rate must lie in [0, 1), not {rate}")
        self.rate = rate
        self.ranges: list[tuple[float, float]] = []  # of each batch, in order: their average is taken at the end
        self._open = False

    def update(self, values: Array, more: bool = False) -> None:
        self.add(kernels.value_range(values), more)

    def add(self, seen: tuple[float, float], more: bool) -> None:
        """The range of a batch or of a part of it."""
        if self._open:
            low, high = self.ranges.pop()
            seen = min(low, seen[0]), max(high, seen[1])
        self.ranges.append(seen)
        self._open = more

    def merge(self, world: World) -> None:
        self.ranges = world.in_order(self.ranges)

    def qparams(self, spec: QuantSpec) -> QParams:
        low, high = self.ranges[0] if self.ranges else (0.0, 0.0)
        for seen in self.ranges[1:]:
            low, high = (
                self.rate * low + (1 - self.rate) * seen[0],
                self.rate * high + (1 - self.rate) * seen[1],
            )
        return qparams_of_range(low, high, spec)


class Histogram:
    """Counts in equal bins over [-reach, reach); the reach doubles when a value lies beyond it.

    The reach is a power of two, so that bins nest: in whatever order and in however many histograms the values come,
    the merged counts are the same.
    """

    def __init__(self, bins: int = _BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.reach = 0.0
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Array, seen: tuple[float, float] | None = None) -> None:
        """Values, flat. seen: its smallest and largest value, where somebody knows them already."""
        low, high = seen or kernels.value_range(values)
        peak = max(-low, high)
        if not peak < _LARGEST_VALUE:  # NaN too
            raise FullquantError(
                f"calibration saw values from {low} to {high}: the float model overflows on these images"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._extend(_reach(peak))
        step = _step(len(values))
        kernels.add_to_histogram(values if step == 1 else values[::step].copy(), self.counts, self.reach)

    def merge(self, world: World) -> None:
        """Adds the counts of all processes."""
        self._extend(float(world.max(self.reach)))
        self.counts = world.sum(self.counts)
        self.low, self.high = float(world.min(self.low)), float(world.max(self.high))

    def _extend(self, reach: float) -> None:
        if self.reach == 0.0:
            self.reach = reach
        while self.reach < reach:
            self._double()

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        quarter = len(self.counts) // 4
        self.counts = np.zeros_like(self.counts)
        self.counts[quarter : quarter + len(merged)] = merged
        self.reach *= 2

    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        bins = len(self.counts)
        middles: npt.NDArray[np.float64] = (np.arange(bins, dtype=np.float64) + 0.5) * (2 * self.reach / bins)
        return middles - self.reach


def _step(size: int) -> int:
    """Every how many-th of `size` values is counted: a prime, or whole channels of a tensor would never be."""
    if size <= _ALL_COUNTED:
        return 1
    step = max(_SMALLEST_STEP, -(-size // _COUNTED))
    while any(step % divisor == 0 for divisor in range(2, math.isqrt(step) + 1)):
        step += 1
    return step


def _reach(peak: float) -> float:
    """The smallest power of two above `peak`: a value at the upper end itself would have no bin of its own."""
    return math.ldexp(1.0, math.frexp(max(peak, _SMALLEST_RANGE))[1])


class PercentileObserver:
    """Cuts equal shares of the values off both ends; `percentile` of 0.9999 keeps that share (hist_percent).

    histogram: one that is filled by somebody else as well.
    """

    def __init__(self, percentile: float = 0.9999, histogram: Histogram | None = None) -> None:
        if not 0.5 < percentile <= 1.0:
            raise ConfigError(f"a percentile lies in (0.5, 1], not {percentile}")
        self.percentile = percentile
        self.histogram = histogram or Histogram()

    def update(self, values: Array, more: bool = False) -> None:
        self.histogram.update(values)

    def merge(self, world: World) -> None:
        self.histogram.merge(world)

    def qparams(self, spec: QuantSpec) -> QParams:
        seen = self.histogram
        total = seen.counts.sum()
        if total == 0:
            return qparams_of_range(0.0, 0.0, spec)
        width = 2 * seen.reach / len(seen.counts)
        if spec.symmetric:
            half = len(seen.counts) // 2
            folded = seen.counts[half:] + seen.counts[:half][::-1]
            bound = (int(np.searchsorted(np.cumsum(folded), self.percentile * total)) + 1) * width
            return qparams_of_range(0.0, min(bound, max(-seen.low, seen.high)), spec)
        share = np.cumsum(seen.counts) / total
        tail = (1.0 - self.percentile) / 2
        low = int(np.searchsorted(share, tail)) * width - seen.reach
        high = (int(np.searchsorted(share, 1.0 - tail)) + 1) * width - seen.reach
        return qparams_of_range(max(low, seen.low), min(high, seen.high), spec)


class MseObserver:
    """The range whose grid gives the smallest mean squared error of the values seen (clipping against rounding).

    Candidates are shares of the observed range, from 1 down to 0.1 in steps of 1%; the error is taken on the
    histogram (Banner et al. 2019, arXiv:1810.05723, pose the trade-off; solved here by search, not in closed form).
    """

    candidates = np.arange(1.0, 0.099, -0.01)

    def __init__(self, histogram: Histogram | None = None) -> None:
        self.histogram = histogram or Histogram()

    def update(self, values: Array, more: bool = False) -> None:
        self.histogram.update(values)

    def merge(self, world: World) -> None:
        self.histogram.merge(world)

    def qparams(self, spec: QuantSpec) -> QParams:
        seen = self.histogram
        used = np.nonzero(seen.counts)[0]
        if used.size == 0:
            return qparams_of_range(0.0, 0.0, spec)
        values, counts = seen.centres()[used], seen.counts[used].astype(np.float64)
        options = grids_of_shares(seen, self.candidates, spec)
        errors = [_squared_error(values, counts, option) for option in options]
        return options[int(np.argmin(errors))]


def grids_of_shares(seen: Histogram, shares: npt.NDArray[np.float64], spec: QuantSpec) -> list[QParams]:
    """The different grids that cover shares of the range seen, in the order of the shares.

    Short scales are few: many shares come to the same one.
    """
    if not spec.symmetric:
        found: dict[tuple[float, int], QParams] = {}
        for share in shares:
            option = qparams_of_range(seen.low * share, seen.high * share, spec)
            found.setdefault((float(option.scale), int(option.zero_point)), option)
        return list(found.values())
    widest = float(qparams_of_range(seen.low, seen.high, dataclasses.replace(spec, mantissas=())).scale)
    scales = spec.nearest_scale(widest * shares)
    return [symmetric(spec, scales[first]) for first in np.sort(np.unique(scales, return_index=True)[1])]


def _squared_error(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], qparams: QParams) -> float:
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    q = np.clip(np.rint(values / scale), qparams.spec.qmin - zero_point, qparams.spec.qmax - zero_point)
    return float(np.sum(counts * (q * scale - values) ** 2))


class EveryObserver:
    """All observers at once, from one look at the values: `choose` says which of them answers."""

    def __init__(self, *, moving_rate: float = 0.9, percentile: float = 0.9999) -> None:
        self.average, self.histogram = MovingAverageObserver(moving_rate), Histogram()
        self.percentile = percentile
        self.chosen = "min_max"

    def update(self, values: Array, more: bool = False) -> None:
        seen = kernels.value_range(values)
        self.average.add(seen, more)
        self.histogram.update(values, seen)

    def merge(self, world: World) -> None:
        self.average.merge(world)
        self.histogram.merge(world)

    def choose(self, name: str) -> None:
        """The observer that `qparams` asks from now on."""
        self.chosen = name

    def qparams(self, spec: QuantSpec) -> QParams:
        if self.chosen == "min_max":
            return qparams_of_range(self.histogram.low, self.histogram.high, spec)
        made: dict[str, Callable[[], Observer]] = {
            "moving_average": lambda: self.average,
            "percentile": lambda: PercentileObserver(self.percentile, self.histogram),
            "mse": lambda: MseObserver(self.histogram),
        }
        return made[self.chosen]().qparams(spec)
