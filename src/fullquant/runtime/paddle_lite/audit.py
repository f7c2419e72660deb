"""Judges a converted program: what runs where, whether every layer kept its integers, and what would be wrong there.

Facts about Paddle Lite are from its sources at 3d329c954c (2.13 and later), and were tried with the converter and the
x86 interpreter of paddlelite 2.13rc0; docs/decisions/0015 tells how. Those about the TIM-VX driver were read only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fullquant.runtime.paddle_lite.converter import npu_of
from fullquant.runtime.paddle_lite.program import LAYERS, TRANSFERS, LiteOperator, OptimisedProgram
from fullquant.runtime.paddle_lite.rules import timvx_errors, x86_errors, x86_notes
from fullquant.runtime.paddle_lite.source import SourceLayer

#: fallback: outside of the NPU's part. float: a layer without an int8 kernel. changed: not the file's integers.
#: wrong: the place computes something else there.
Kind = Literal["fallback", "float", "changed", "wrong"]
# Operators that work on sizes, not on the tensors of the network: they have no scales.
_SIZES = frozenset({"shape", "fill_constant"})


@dataclass(frozen=True)
class Finding:
    """Something that is not as a fully integer file on this target should be. why: one sentence with the cause."""

    kind: Kind
    operator: str
    tensor: str
    why: str


@dataclass(frozen=True)
class Audit:
    """What a converted program does.

    operators: how many compute something, wherever. on_npu: how many of them in NPU subgraphs.
    subgraphs: the operator types of each NPU subgraph.
    kernels: "arm int8", "arm float32", ... -> operator type -> how many run so, outside of subgraphs. What is in
        float32 without a finding has no int8 kernel in Paddle Lite.
    layers, int8_layers: matrix products, and how many of them have int8 weights, an input scale and, where the kernel
        writes int8, an output scale.
    same_weights: layers whose weights and scales are exactly the file's. None where there is nothing to compare with.
    """

    targets: tuple[str, ...]
    operators: int
    on_npu: int
    subgraphs: tuple[tuple[str, ...], ...]
    kernels: Mapping[str, Mapping[str, int]]
    layers: int
    int8_layers: int
    same_weights: int | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def fully_on_npu(self) -> bool:
        """Whether one NPU subgraph holds every operator."""
        return len(self.subgraphs) == 1 and self.on_npu == self.operators


def audit(
    program: OptimisedProgram,
    targets: Sequence[str],
    *,
    supported: Mapping[str, frozenset[str]] | None = None,
    source: Mapping[str, SourceLayer] | None = None,
) -> Audit:
    """Judges an optimised program.

    supported: device -> operators, of this converter (`supported_operators`); reasons are vaguer without it.
    source: the int8 file's layers by weight name; None or empty for a float model, whose layers are not judged.
    """
    device = npu_of(targets)
    layers = [op for op in program if op.type in LAYERS and program.stored_weight(op) is not None]
    findings: list[Finding] = []
    if device is not None:
        findings += _outside(program, device, (supported or {}).get(device))
        findings += _float_inside(program)
    complaints = {op.output: tuple(_incomplete(op, program)) for op in layers}
    if source:
        findings += [f for op in layers for f in complaints[op.output]]
        findings += [f for op in layers for f in _changed(op, program, source)]
    if device == "verisilicon_timvx":
        findings += [
            Finding("wrong", *error) for operators in program.subgraphs for error in timvx_errors(operators, program)
        ]
    if "x86" in targets:
        findings += [Finding("wrong", *error) for error in x86_errors(program)]
    changed = {f.tensor for f in findings if f.kind == "changed"}
    return Audit(
        targets=tuple(targets),
        operators=sum(op.type not in TRANSFERS and op.type != "subgraph" for op in program),
        on_npu=sum(op.type not in TRANSFERS for operators in program.subgraphs for op in operators),
        subgraphs=tuple(tuple(op.type for op in operators) for operators in program.subgraphs),
        kernels=_kernels(program.outside),
        layers=len(layers),
        int8_layers=sum(not complaints[op.output] for op in layers),
        same_weights=sum(op.output not in changed for op in layers) if source else None,
        findings=tuple(findings),
        notes=tuple(x86_notes(program)) if "x86" in targets else (),
    )


def _kernels(operators: Sequence[LiteOperator]) -> Mapping[str, Mapping[str, int]]:
    found: dict[str, Counter[str]] = {}
    for op in operators:
        found.setdefault(f"{op.place} {op.precision}", Counter())[op.type] += 1
    return {place: dict(counts) for place, counts in sorted(found.items())}


def _outside(program: OptimisedProgram, device: str, supported: frozenset[str] | None) -> Iterator[Finding]:
    """Operators of the main block, each with the reason why the NPU does not get it."""
    for op in program.outside:
        yield Finding("fallback", op.type, op.output, _why_outside(op, device, supported))
    if not program.outside and len(program.subgraphs) != 1:
        yield Finding("fallback", "subgraph", "", f"the network is in {len(program.subgraphs)} subgraphs, not in one")


def _why_outside(op: LiteOperator, device: str, supported: frozenset[str] | None) -> str:
    if supported is not None and op.type not in supported:
        return f"this Paddle Lite has no {device} converter for {op.type}"
    if op.output_scale is None:
        return "it has no output scale, so it is not int8: kept float by the placement, or a quantizer is missing"
    return "cut off: its neighbours are on the processor, or the partition file names it"


def _float_inside(program: OptimisedProgram) -> Iterator[Finding]:
    """Places in a subgraph where the NPU would have to compute in float."""
    for operators in program.subgraphs:
        for op in operators:
            if op.type in TRANSFERS:
                yield Finding("fallback", op.type, op.output, "inside the subgraph the tensor leaves int8")
            elif _has_scales(op) and op.output_scale is None and op.type not in _SIZES:
                yield Finding("fallback", op.type, op.output, "has scales at its inputs but none at its output")


def _has_scales(op: LiteOperator) -> bool:
    return any(name.endswith("0_scale") for name in op.attributes)


def _incomplete(op: LiteOperator, program: OptimisedProgram) -> Iterator[Finding]:
    """What a layer lacks to run in integers."""
    _, weight = _weight(op, program)
    if not op.int8 or weight.dtype != np.int8 or op.precision == "float32":
        where = f"on {op.place} " if op.place else ""
        held = "int8 weights are turned to float32" if weight.dtype == np.int8 else f"its weights are {weight.dtype}"
        yield Finding("float", op.type, op.output, f"runs {where}in float32; {held}")
        return
    inputs, weights = _first(op, "Input", "X"), _first(op, "Filter", "W", "Y")
    if inputs is None or inputs.size != 1:
        yield Finding("float", op.type, op.output, "has no scale for its input")
    if weights is None or weights.size not in (1, _channels(op, weight.shape)):
        count = 0 if weights is None else weights.size
        yield Finding(
            "float", op.type, op.output, f"has {count} weight scales for {_channels(op, weight.shape)} channels"
        )
    writes_int8 = not op.place or op.alias.replace("_", "").startswith("int8out")
    if writes_int8 and op.output_scale is None:
        yield Finding("float", op.type, op.output, "has no scale for its output")


def _weight(op: LiteOperator, program: OptimisedProgram) -> tuple[str, np.ndarray]:
    stored = program.stored_weight(op)
    assert stored is not None  # of layers with constant weights only
    return stored


def _first(op: LiteOperator, *parameters: str) -> np.ndarray | None:
    return next((s for s in map(op.scales, parameters) if s is not None), None)


def _channels(op: LiteOperator, shape: tuple[int, ...]) -> int:
    """Length of the weight's output axis: 0 for convolutions [C_out, ...], the last for products [K, N]."""
    if op.type == "conv2d_transpose":
        groups = op.attributes.get("groups", 1)
        return shape[1] * (groups if isinstance(groups, int) else 1)
    if "conv2d" in op.type:
        return shape[0]
    return shape[0] if op.attributes.get("trans_y") else shape[-1]


def _changed(op: LiteOperator, program: OptimisedProgram, source: Mapping[str, SourceLayer]) -> Iterator[Finding]:
    """Where weights, their scales or the input's scale are not exactly those of the int8 file."""
    name, weight = _weight(op, program)
    ours = source.get(name)
    if ours is None:
        yield Finding("changed", op.type, op.output, f"the int8 file has no int8 weight {name!r}")
        return
    if weight.dtype == np.int8 and not any(_same(weight, w) for w in (ours.weight, ours.weight.T)):
        yield Finding("changed", op.type, op.output, f"the integers of {name!r} are not those of the file")
    steps = _first(op, "Filter", "W", "Y")
    if steps is not None and not ours.normalised and not _same_steps(steps, ours.weight_scale):
        yield Finding("changed", op.type, op.output, f"the scales of {name!r} are not those of the file")
    inputs = _first(op, "Input", "X")
    if inputs is not None and ours.input_scale is not None and float(inputs[0]) != ours.input_scale:
        why = f"its input has the scale {float(inputs[0])}, in the file {ours.input_scale}"
        yield Finding("changed", op.type, op.output, why)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))


def _same_steps(a: np.ndarray, b: np.ndarray) -> bool:
    """One step for all channels may be written once or for each."""
    return (a.size == b.size or 1 in (a.size, b.size)) and bool(np.all(a == b))
