"""The physical limit of a step: what the multiplications and the bytes alone would take on this machine.

A distillation step holds four forward passes worth of multiplications: teacher, student, and the student's gradients
for activations and for weights. Fake-quantize adds passes over memory: forward reads x and writes y, backward reads x
and the gradient of y and writes that of x: 5 * 4 bytes for every element that is quantized, where it is a kernel of its
own. Fused with a pointwise operator (ReLU, HardSwish, addition) it needs no pass that the float step does not need too.
"""

from __future__ import annotations

import statistics
from functools import cache

from alternate import Series, Variant, run_once

FORWARD_PASSES = 4
BYTES_PER_ELEMENT = 5 * 4


@cache
def speed(threads: int) -> dict[str, float]:
    """What workers/speed.py measures in a process with so many threads."""
    answer = run_once(Variant("speed of the machine", "speed.py"), threads)
    return {name: float(answer[name]) for name in ("multiplications_per_s", "bytes_per_s")}


def limits(series: Series, threads: int) -> dict[str, float]:
    """What the float step and fake-quantize take at least, and the least ratio of a QAT step to this float step.

    series: steps of our float variant, whose worker counted the work. `separate`: every fake-quantize is a pass of its
    own; `fused`: those behind a pointwise operator share its pass, which the float step has too.
    """
    work, fast = series.facts["work"], speed(threads)
    float_step = statistics.median(series.seconds)
    separate = (work["activation_elements"] + work["weight_elements"]) * BYTES_PER_ELEMENT
    fused = separate - work["pointwise_elements"] * BYTES_PER_ELEMENT
    return {
        **fast,
        "least_float_step_s": FORWARD_PASSES * work["multiplications"] / fast["multiplications_per_s"],
        "separate_s": separate / fast["bytes_per_s"],
        "fused_s": fused / fast["bytes_per_s"],
        "least_ratio_separate": 1 + separate / fast["bytes_per_s"] / float_step,
        "least_ratio_fused": 1 + fused / fast["bytes_per_s"] / float_step,
    }
