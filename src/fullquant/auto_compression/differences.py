"""Why a runtime gives other outputs than the simulation of its file: the first tensor, and what explains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.readers import ModelFiles
from fullquant.runtime.departure import Bisection, Departure, Difference, Simulation
from fullquant.runtime.layer_evidence import LayerEvidence, layer_evidence, layer_input
from fullquant.runtime.sum_evidence import operands, sum_evidence

FloatArray = npt.NDArray[np.float32]
# Share of the elements that differ from which on a supposition counts as the cause.
_MOST = 0.8


@dataclass(frozen=True)
class Explanation:
    """departure: where it begins. evidence: the layer of `departure.leap` recomputed; None where that is no layer, or
    the runtime does not show what it gave the layer.

    cause: one sentence for people.
    """

    departure: Departure
    evidence: LayerEvidence | None
    cause: str

    @property
    def saturates(self) -> bool:
        """Whether the processor's kernels were shown to cut sums to 16 bits."""
        return self.evidence is not None and self.evidence.cause == "saturation"


def explain(simulation: Simulation, files: ModelFiles, engine: str, optimize: bool, images: FloatArray) -> Explanation:
    """Looks into a runtime on a few images on which it differs. Raises EngineError where it does not take the file."""
    bisection = Bisection(simulation, files, engine, optimize, images)
    departure = bisection.departure()
    evidence = _evidence(bisection, departure)
    half_way = _half_way(bisection, departure.first)
    cause = _sentence(departure, evidence)
    if half_way and (evidence is None or evidence.cause == "carried"):
        cause = half_way
    return Explanation(departure, evidence, cause)


def _half_way(bisection: Bisection, first: Difference | None) -> str | None:
    """Of a first difference at a sum of two tensors whose half-way values a kernel rounds to one side."""
    graph = bisection.simulation.graph
    names = None if first is None else operands(graph, first.tensor)
    if first is None or names is None or any(name not in bisection.expected for name in names):
        return None
    one, other, actual = (bisection.integers(name) for name in (*names, first.tensor))
    if one is None or other is None or actual is None:
        return None
    found = sum_evidence(graph, first.tensor, one, other, actual, bisection.expected[first.tensor])
    if found is None or found.half_way < _MOST:
        return None
    return (
        f"rounding: of {found.checked} elements of the sum {first.tensor!r} that are one step away, "
        f"{100 * found.half_way:.0f}% lie half-way between two integers: the kernel multiplies each operand by a "
        "rounded ratio of scales; quantized again with scale_grid: short, sums get scales with which it rounds alike"
    )


def _evidence(bisection: Bisection, departure: Departure) -> LayerEvidence | None:
    leap = departure.leap
    source = None if leap is None else layer_input(bisection.simulation.graph, leap.tensor)
    if leap is None or source is None or source not in bisection.expected:
        return None
    given, actual = bisection.integers(source), bisection.integers(leap.tensor)
    if given is None or actual is None:
        return None
    return layer_evidence(bisection.simulation.graph, leap.tensor, given, actual, bisection.expected[leap.tensor])


def _sentence(departure: Departure, evidence: LayerEvidence | None) -> str:
    first, leap = departure.first, departure.leap
    if first is None:
        return "no tensor that the runtime shows differs on these images"
    if leap is None:
        return "rounding: no tensor that the runtime shows is more than one step away"
    if evidence is None:
        return f"rounding: the runtime computes {leap.operator} at {leap.tensor!r} together with operators around it"
    return _CAUSES[evidence.cause].format(
        layer=evidence.layer, checked=evidence.checked, weight=evidence.largest_weight, steps=leap.steps,
        saturated=100 * evidence.saturated, requantized=100 * evidence.requantized, both=100 * evidence.both,
        first=first.tensor,
    )  # fmt: skip


_CAUSES = {
    "carried": "rounding: {layer!r} is computed as the file says, from an input that was rounded differently; "
    "the difference begins at {first!r}",
    "saturation": "saturation: this processor's int8 kernels add two products in 16 bits (x86 without VNNI); of "
    "{checked} elements of {layer!r} that are more than a step away, {saturated:.0f}% come out so; reduce_range: true "
    "(--reduce-range) keeps weights in [-64, 63], now up to {weight}, where no sum of two products is cut",
    "requantized": "the runtime rounds the weights of {layer!r} again, to max|w|/127 of each channel: of {checked} "
    "elements that are more than a step away, {requantized:.0f}% come out so",
    "both": "the runtime rounds the weights of {layer!r} again, and its sums are cut to 16 bits: of {checked} elements "
    "that are more than a step away, {both:.0f}% come out so; reduce_range: true avoids the second",
    "unexplained": "{layer!r} is up to {steps} steps away from what its input and its integers give; no cause is known",
}
