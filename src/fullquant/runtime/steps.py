"""The executor's program: steps over numbered slots, and the fusion of neighbouring steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from fullquant.runtime.convolution import ClippedConvolution, Convolution
from fullquant.runtime.fake_quantize import FakeQuantize
from fullquant.runtime.fused import FusedGate, FusedHardSwish, FusedSum

QUANTIZE = "fake_quantize"


@dataclass
class Step:
    """One operation: slots read, slots written, what is freed afterwards.

    kind: the ONNX operator, or QUANTIZE. output_names: the tensor of each output, "" where a step only rounds.
    hidden: slots that a fused step no longer writes. clamp: the bounds of a step that does nothing else.
    """

    kind: str
    operation: Callable[..., Any]
    inputs: list[int]
    outputs: list[int]
    output_names: list[str]
    free: list[int] = field(default_factory=list)
    hidden: frozenset[int] = frozenset()
    clamp: tuple[float, float] | None = None


def plan_frees(steps: list[Step], keep: Collection[int]) -> None:
    """Each slot is freed after its last reader, unless it is in `keep`."""
    seen: set[int] = set()
    for step in reversed(steps):
        step.free = []
        for slot in sorted({*step.inputs, *step.outputs}):
            if slot not in seen and slot not in keep:
                step.free.append(slot)
            seen.add(slot)


def fuse(steps: list[Step], constants: Collection[int]) -> list[Step]:
    """The same program with fewer steps, where that is possible.

    HardSwish, Add and Mul are joined with the quantizers around them, Conv with the clamp or HardSwish behind it.

    steps: with their frees planned. constants: slots of initializers, which the kernels do not take.
    """
    fused: list[Step] = []
    position = 0
    while position < len(steps):
        pair = steps[position : position + 2]
        made = _hard_swish(steps[position : position + 3]) or _binary(pair, constants) or _activated(pair)
        fused.append(made or steps[position])
        position += 1 if made is None else made_of(made)
    return fused


def made_of(step: Step) -> int:
    """How many steps a fused one stands for."""
    return 3 if isinstance(step.operation, FusedHardSwish) else 2


def _hard_swish(steps: list[Step]) -> Step | None:
    if [step.kind for step in steps] != [QUANTIZE, "HardSwish", QUANTIZE]:
        return None
    before, middle, after = steps
    first, second = before.operation, after.operation
    assert isinstance(first, FakeQuantize)
    assert isinstance(second, FakeQuantize)
    if before.outputs != middle.inputs or not _only_rounds(middle, after) or not _died(before.outputs[0], middle):
        return None
    if not (_per_tensor(first) and _per_tensor(second)) or first.bounds != (-math.inf, math.inf):
        return None
    if second.bounds != (-math.inf, math.inf):
        return None
    return replace(
        after, kind="FusedHardSwish", operation=FusedHardSwish(first, second), inputs=before.inputs,
        output_names=middle.output_names, free=[*middle.free, *after.free], hidden=frozenset(before.outputs),
    )  # fmt: skip


def _binary(steps: list[Step], constants: Collection[int]) -> Step | None:
    if len(steps) != 2 or steps[0].kind not in ("Add", "Mul") or steps[1].kind != QUANTIZE:
        return None
    operation, after = steps
    quantizer = after.operation
    assert isinstance(quantizer, FakeQuantize)
    if len(operation.inputs) != 2 or set(operation.inputs) & set(constants) or not _per_tensor(quantizer):
        return None
    inner = operation.outputs[0]
    if after.inputs != [inner] or not (after.outputs == [inner] or _died(inner, after)):
        return None
    if operation.kind == "Mul" and quantizer.bounds != (-math.inf, math.inf):
        return None
    in_place = after.outputs == [inner]
    return replace(
        after, kind=f"Fused{operation.kind}", inputs=operation.inputs,
        operation=FusedSum(quantizer) if operation.kind == "Add" else FusedGate(quantizer),
        output_names=operation.output_names if in_place else after.output_names,
        free=[*operation.free, *after.free], hidden=frozenset() if in_place else frozenset([inner]),
    )  # fmt: skip


def _activated(steps: list[Step]) -> Step | None:
    """A convolution and the clamp or HardSwish behind it."""
    if len(steps) != 2 or not isinstance(steps[0].operation, Convolution):
        return None
    conv, after = steps
    convolution, inner = conv.operation, conv.outputs[0]
    assert isinstance(convolution, Convolution)
    if after.inputs != [inner] or not _died(inner, after):
        return None
    operation: Callable[..., Any]
    if after.kind == "HardSwish":
        operation = convolution.hard_swish
    elif after.clamp is not None and (after.clamp == (0.0, math.inf) or math.isfinite(after.clamp[1] - after.clamp[0])):
        operation = ClippedConvolution(convolution, *after.clamp)
    else:
        return None
    return replace(
        after, kind=f"Conv{after.kind}", operation=operation, inputs=conv.inputs,
        free=[*conv.free, *after.free], hidden=frozenset([inner]),
    )  # fmt: skip


def _only_rounds(operation: Step, after: Step) -> bool:
    return after.inputs == after.outputs == operation.outputs


def _died(slot: int, step: Step) -> bool:
    """Whether nothing reads the slot after this step."""
    return slot in step.free


def _per_tensor(quantizer: FakeQuantize) -> bool:
    return quantizer.spec.axis is None
