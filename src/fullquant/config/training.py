"""Section TrainConfig: how long, how fast, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from fullquant.config.learning_rate import LearningRate, LearningRateSchedule, read_learning_rate
from fullquant.config.optimizer import ClipGradByGlobalNorm, OptimizerBuilder
from fullquant.config.settings import Fixed, Settings, require

# PaddleSlim trains this many epochs where neither epochs nor train_iter is given.
DEFAULT_EPOCHS = 100

_DISTRIBUTED = "it configures Paddle's fleet; several processes are started with torchrun instead, without a key"


def _rate(value: object, where: str) -> object:
    return read_learning_rate(value, where)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Training of the student.

    A step, or iteration, is one batch. learning_rate: the schedule's step is the number of iterations done.
    The metrics are top-1 accuracies between 0 and 1, or in the unit of the user's eval_callback.
    """

    SECTION: ClassVar[str] = "TrainConfig"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "amp_config": Fixed((None,), "training is in float32, as the exported scales are"),
        "recompute_config": Fixed((None,), _DISTRIBUTED),
        "sharding_config": Fixed((None,), _DISTRIBUTED),
        "sparse_model": Fixed((False,), "fullquant does not prune, and quantizes a sparse model like any other"),
    }
    epochs: int | None = None
    train_iter: int | None = None
    learning_rate: float | LearningRateSchedule = field(default=0.02, metadata={"before": _rate})
    optimizer_builder: OptimizerBuilder = field(default_factory=OptimizerBuilder)
    eval_iter: int = 1000
    logging_iter: int = 10
    origin_metric: float | None = None
    target_metric: float | None = None
    base_batch_size: int | None = None
    grad_clip: float | None = None
    resume: bool = False
    checkpoint_iter: int = 500

    def check(self) -> None:
        for key in (
            "epochs",
            "train_iter",
            "eval_iter",
            "logging_iter",
            "base_batch_size",
            "checkpoint_iter",
            "grad_clip",
        ):
            value = getattr(self, key)
            require(value is None or value > 0, f"TrainConfig.{key}: {value} must be > 0")
        require(
            self.grad_clip is None or self.optimizer_builder.grad_clip is None,
            "TrainConfig.grad_clip: optimizer_builder.grad_clip is given as well; keep one",
        )

    @property
    def optimizer(self) -> OptimizerBuilder:
        """optimizer_builder, with `grad_clip` as its clip by the global norm."""
        if self.grad_clip is None:
            return self.optimizer_builder
        return replace(self.optimizer_builder, grad_clip=ClipGradByGlobalNorm(self.grad_clip))

    def total_iterations(self, iterations_per_epoch: int) -> int:
        """Iterations of the whole run: epochs or train_iter, whichever ends first; 100 epochs where neither is given.

        PaddleSlim 2.6, except that train_iter alone is not cut at 100 epochs.
        """
        require(
            iterations_per_epoch > 0, "TrainConfig: an epoch without a batch: batch_size exceeds the training images"
        )
        if self.epochs is None and self.train_iter is not None:
            return self.train_iter
        total = (self.epochs or DEFAULT_EPOCHS) * iterations_per_epoch
        return total if self.train_iter is None else min(total, self.train_iter)

    def rate_factor(self, batch_size: int, processes: int = 1) -> float:
        """What the learning rate is multiplied by: the linear rule where base_batch_size is given, else 1."""
        return 1.0 if self.base_batch_size is None else batch_size * processes / self.base_batch_size


__all__ = ["DEFAULT_EPOCHS", "LearningRate", "TrainConfig"]
