"""Why a runtime gives other outputs than the simulation of its file: the first tensor, and what explains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.readers import ModelFiles
from fullquant.runtime.departure import Bisection, Departure, Simulation
from fullquant.runtime.layer_evidence import LayerEvidence, layer_evidence, layer_input

FloatArray = npt.NDArray[np.float32]


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
    return Explanation(departure, evidence, _sentence(departure, evidence))


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
