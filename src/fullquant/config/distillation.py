"""Section Distillation: what the student learns from the teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fullquant.config.settings import Settings, require
from fullquant.errors import ConfigError

Loss = Literal["l2", "soft_label"]
TEACHER_PREFIX = "teacher_"

_REFUSED_LOSSES: Mapping[str, str] = {
    "fsp": "it compares pairs of layers, and PaddleSlim cannot pass it four either; use l2",
    "dkd": "use soft_label",
    "skd": "use soft_label",
}


@dataclass(frozen=True)
class DistillationTerm:
    """One term of the loss: alpha * loss(teacher's variable, student's variable).

    soft_label: mean over the batch of -sum(softmax(t) * log softmax(s)), over the last axis. l2: mean of (s - t)^2 over
    all elements. PaddleSlim 2.6, paddleslim/dist/single_distiller.py.
    """

    teacher: str
    student: str
    loss: Loss
    alpha: float


def _losses(value: object, where: str) -> object:
    for name in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(name, str) and name in _REFUSED_LOSSES:
            raise ConfigError(f"{where}: {name} is not available: {_REFUSED_LOSSES[name]}")
    return value


def _groups(value: object, where: str) -> object:
    """Nodes as groups: a name, a list of names (one group) or a list of lists; null is none."""
    if value is None or value == "None":
        return ()
    if isinstance(value, str):
        return ((value,),)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return (tuple(value),)
    return value


@dataclass(frozen=True)
class Distillation(Settings):
    """Loss between the float teacher and the quantized student.

    node: groups of variable names, () for the default node; loss and alpha: one per group, or one for all.
    A name stands for the variable of both models. For a teacher whose variables have other names the list holds pairs,
    "teacher_" and the teacher's name, then the student's name. `terms` resolves both.
    teacher_cache_gb (ours): so many gigabytes of teacher outputs are kept on disk during a run.
    """

    SECTION: ClassVar[str] = "Distillation"
    loss: tuple[Loss, ...] = field(default=("l2",), metadata={"before": _losses})
    node: tuple[tuple[str, ...], ...] = field(default=(), metadata={"before": _groups})
    alpha: tuple[float, ...] = (1.0,)
    teacher_model_dir: str | None = None
    teacher_model_filename: str | None = None
    teacher_params_filename: str | None = None
    teacher_output_name: str | None = None
    teacher_cache_gb: float | None = None

    def check(self) -> None:
        require(
            self.teacher_cache_gb is None or self.teacher_cache_gb > 0,
            f"Distillation.teacher_cache_gb: {self.teacher_cache_gb} must be > 0 (gigabytes on disk), or null for none",
        )
        require(all(self.node) or not self.node, "Distillation.node: an inner list is empty")
        require(bool(self.alpha) and min(self.alpha) > 0, f"Distillation.alpha: {list(self.alpha)} must be > 0")
        require(bool(self.loss), "Distillation.loss: must name at least one loss")
        if len(self.node) == 1 and len(self.loss) > 1:  # a flat list of nodes with a loss each
            object.__setattr__(self, "node", tuple((name,) for name in self.node[0]))
        count = max(len(self.node), 1)
        for key in ("loss", "alpha"):
            length = len(getattr(self, key))
            require(
                length in (1, count),
                f"Distillation.{key}: {length} values for {count} groups of nodes; give one, or one for each group",
            )
        if self.teacher_model_dir is None:
            for key in ("teacher_model_filename", "teacher_params_filename", "teacher_output_name"):
                require(getattr(self, key) is None, f"Distillation.{key}: needs teacher_model_dir")

    def terms(
        self, student_names: Collection[str], default_node: str, default_teacher_node: str
    ) -> tuple[DistillationTerm, ...]:
        """The terms of the loss, names resolved.

        student_names: the student's variables. They decide how `node` is read, as in PaddleSlim: where its first name
        is one of them, every name stands for both models; else the names are pairs, teacher's first.
        default_node, default_teacher_node: the output of the last layer with parameters, used where `node` is absent.
        """
        groups = self.node or ((default_node,),)
        losses = self.loss * len(groups) if len(self.loss) == 1 else self.loss
        alphas = self.alpha * len(groups) if len(self.alpha) == 1 else self.alpha
        if not self.node:
            return (DistillationTerm(default_teacher_node, default_node, losses[0], alphas[0]),)
        paired = groups[0][0] not in student_names
        return tuple(
            DistillationTerm(teacher, student, loss, alpha)
            for names, loss, alpha in zip(groups, losses, alphas, strict=True)
            for teacher, student in (_pairs(names) if paired else zip(names, names, strict=True))
        )


def _pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    if len(names) % 2 or not all(name.startswith(TEACHER_PREFIX) for name in names[::2]):
        raise ConfigError(
            f"Distillation.node: {names[0]!r} is no variable of the model; for a teacher with other names write pairs: "
            f"{TEACHER_PREFIX}<teacher's variable>, <student's variable>"
        )
    return [
        (teacher.removeprefix(TEACHER_PREFIX), student)
        for teacher, student in zip(names[::2], names[1::2], strict=True)
    ]
