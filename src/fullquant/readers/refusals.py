"""What a model holds that is not read: all of it in one error, with counts, so that one export is enough to mend it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fullquant.errors import UnsupportedOperatorError

OTHER_WAY = "replace the layer, or convert the model to ONNX and pass the .onnx file"
_MOST_LISTED = 12


@dataclass(frozen=True)
class Reason:
    """Why operators are refused. sentence: follows "operator 'x' (output 'y')"; word: stands in a list."""

    sentence: str
    word: str
    remedy: str


UNKNOWN = Reason("has no translation", "", OTHER_WAY)
CONTROL_FLOW = Reason(
    "is control flow, which has no static graph",
    "control flow",
    "export the model without data-dependent branches and loops",
)
RECURRENT = Reason(
    "is recurrent, and only feed-forward classifiers are quantized",
    "recurrent",
    "quantize the convolutional part alone, exported as a model of its own",
)
SEQUENCE = Reason(
    "makes or reads a sequence of tensors, and only tensors are read",
    "sequence",
    "export with torch.onnx.export(..., dynamo=True), or split with fixed sizes",
)
RANDOM = Reason(
    "draws random numbers, on which the answer would depend",
    "random numbers",
    "export the model in evaluation mode, model.eval()",
)
TRAINING = Reason(
    "is in training mode, and computes something else when the model is used",
    "in training mode",
    "export the model in evaluation mode, model.eval()",
)
QUANTIZED = Reason(
    "is a quantizer of a form that is not read: the model is quantized already",
    "quantizer",
    "give the float model that it was made from",
)
ATTENTION = Reason(
    "is an attention kernel of GPUs, which is not read",
    "attention kernel of GPUs",
    "write the attention as matmul and softmax, or export on a CPU, where Paddle takes them by itself",
)
OTHER_DOMAIN = Reason(
    "is no operator of the ONNX standard, and only those are read",
    "not of the ONNX standard",
    "export the model without runtime-specific optimizations",
)

_RECURRENT = frozenset({
    "rnn", "lstm", "lstmp", "gru", "gru_unit", "lstm_unit", "cudnn_lstm", "basic_lstm", "basic_gru", "fusion_gru",
    "fusion_lstm", "multi_gru", "recurrent", "rnn_memory_helper",
})  # fmt: skip
_CONTROL_FLOW = frozenset({"while", "if", "conditional_block", "conditional_block_infer", "select_input", "assert"})
_ATTENTION = re.compile(r"flash_attn|memory_efficient_attention")
_QUANTIZER = re.compile(r"(de)?quantize|qlinear|integer$|^q(conv|gemm|matmul|attention)", re.IGNORECASE)


@dataclass(frozen=True)
class Refused:
    """An operator call that is not read. type: as the file names it; output: the first variable that it writes."""

    type: str
    output: str
    reason: Reason


def reason_of(operator: str, otherwise: Reason = UNKNOWN) -> Reason:
    """Why an operator without a rule is refused, by its name ("lstm", "pd_op.gru_", "LSTM", "QLinearConv")."""
    name = operator.rpartition(".")[2].removesuffix("_")
    if name.lower() in _RECURRENT:
        return RECURRENT
    if name in _CONTROL_FLOW:
        return CONTROL_FLOW
    if _ATTENTION.search(name):
        return ATTENTION
    return QUANTIZED if _QUANTIZER.search(name) else otherwise


def refusal(path: Path, found: Sequence[Refused]) -> UnsupportedOperatorError:
    """The error for one operator or more that are not read: each type with its count, then what to do."""
    first = found[0]
    kinds = _by_type(found)
    remedies = "; ".join(dict.fromkeys(one.reason.remedy for one in found))
    if len(found) == 1:
        return UnsupportedOperatorError(
            f"{path}: {named(first.type, first.output)} {first.reason.sentence}; {remedies}"
        )
    listed = [_entry(group) for group in kinds[:_MOST_LISTED]]
    if len(kinds) > _MOST_LISTED:
        listed.append(f"{len(kinds) - _MOST_LISTED} more types")
    what = f"{len(found)} operators of {len(kinds)} {'type' if len(kinds) == 1 else 'types'} cannot be read"
    return UnsupportedOperatorError(f"{path}: {what}: {', '.join(listed)}; {remedies}")


def named(operator: str, output: str) -> str:
    """operator 'conv2d' (output 'y'); values of Paddle 3 programs have numbers instead of names: (output %7)."""
    return f"operator {operator!r} (output {output if output.startswith('%') else repr(output)})"


def _entry(group: Sequence[Refused]) -> str:
    first, count = group[0], len(group)
    where = first.output if first.output.startswith("%") else repr(first.output)
    times = f"output {where}" if count == 1 else f"{count} times, first output {where}"
    return f"{first.type!r} ({times}{', ' if first.reason.word else ''}{first.reason.word})"


def _by_type(found: Sequence[Refused]) -> list[list[Refused]]:
    """In order of first appearance."""
    groups: dict[str, list[Refused]] = {}
    for one in found:
        groups.setdefault(one.type, []).append(one)
    return list(groups.values())
