"""Losses between teacher and student: the float model labels the images, so none are needed from the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn.functional as F

from fullquant.errors import ConfigError

Tensor = torch.Tensor


def soft_label(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(teacher) || softmax(student)), shape ().

    Differs from the cross entropy with soft labels by the teacher's entropy, a constant; the gradient is the same
    (Hinton et al. 2015, arXiv:1503.02531, temperature 1). Inputs are logits [N, C] (or [N, C, 1, 1]).
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over all elements, shape ()."""
    return F.mse_loss(student, teacher)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"soft_label": soft_label, "l2": l2}


@dataclass(frozen=True)
class DistillationTerm:
    """alpha * loss(student's node, teacher's node)."""

    loss: str
    student_node: str
    teacher_node: str
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"unknown distillation loss {self.loss!r}; known: {', '.join(LOSSES)}")
        if not self.alpha > 0:
            raise ConfigError(f"Distillation.alpha must be > 0, not {self.alpha}")


def total_loss(
    terms: Sequence[DistillationTerm], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> Tensor:
    """Sum of the terms, shape (). The mappings hold the tensors of the nodes by name."""
    losses = []
    for term in terms:
        ours, theirs = student[term.student_node], teacher[term.teacher_node]
        if ours.shape != theirs.shape:
            raise ConfigError(
                f"distillation pairs {term.student_node!r} of shape {tuple(ours.shape)} with the teacher's "
                f"{term.teacher_node!r} of shape {tuple(theirs.shape)}; pair nodes of equal shape in Distillation.node"
            )
        losses.append(term.alpha * LOSSES[term.loss](ours, theirs))
    return torch.stack(losses).sum()


def default_node(model: ir.Model) -> str:
    """Output of the last layer with parameters: the logits, even where the model ends in a softmax."""
    last: str | None = None
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and any(
            v is not None and v.const_value is not None for v in node.inputs[1:2]
        ):
            last = _after_bias(node)
    if last is None:
        raise ConfigError("the model has no layer with parameters; name the tensor to distil in Distillation.node")
    return last


def _after_bias(node: ir.Node) -> str:
    """The tensor behind `MatMul + constant bias`, else the node's own output."""
    readers = [use.node for use in node.outputs[0].uses()]
    if (
        len(readers) == 1
        and readers[0].op_type == "Add"
        and any(v.const_value is not None for v in readers[0].inputs if v)
    ):
        return str(readers[0].outputs[0].name)
    return str(node.outputs[0].name)
