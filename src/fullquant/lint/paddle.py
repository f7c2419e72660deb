"""The rules for Paddle files, applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fullquant.lint import paddle_operators as operators
from fullquant.lint import paddle_tensors as tensors
from fullquant.lint.finding import Finding
from fullquant.lint.lite_passes import Array, Fused, fuse
from fullquant.readers.program import Program

RULES: tuple[Callable[[Fused], Iterator[Finding]], ...] = (
    operators.rounds, operators.is_test, operators.bits, operators.scale_variables, operators.axes,
    operators.zero_points, operators.pairs, operators.shared_variables,
    tensors.scale_shapes, tensors.missing_scales, tensors.weights, tensors.biases, tensors.accumulators,
    tensors.hard_swish, tensors.integer_tensors, tensors.same_scales,
)  # fmt: skip


def lint_program(program: Program, parameters: Mapping[str, Array]) -> list[Finding]:
    """Findings of all rules, each once, in the order of the rules and of the program.

    parameters: the content of the persistable variables, by name.
    """
    fused = fuse(program, parameters)
    found = [finding for rule in RULES for finding in rule(fused)]
    return list(dict.fromkeys(found))
