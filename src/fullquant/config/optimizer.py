"""TrainConfig.optimizer_builder: optimizers, gradient clips and regularizers, with the defaults of Paddle.

What each computes is in training/optimizers.py. Source: PaddlePaddle 3.3: paddle.optimizer, .nn, .regularizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fullquant.config.learning_rate import read_typed
from fullquant.config.settings import Fixed, Settings, require
from fullquant.errors import ConfigError

_NAME = Fixed((None,), "fullquant names nothing after it")
_FULL_PRECISION = Fixed((False,), "training keeps its parameters in float32")
_DENSE = Fixed((False,), "image classifiers have no sparse gradients")
_SPEED_ONLY = Fixed((True, False), "it changes Paddle's speed only, not the numbers")
_FUNCTION = Fixed((None,), "a function cannot be written in YAML")


class OptimizerSettings(Settings):
    """Base of the optimizers. DECAY: what `weight_decay` of the builder means: coupled, decoupled or refused."""

    FIXED: ClassVar[Mapping[str, Fixed]] = {"name": _NAME}
    DECAY: ClassVar[str] = "coupled"

    def _require_fraction(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(0 <= value < 1, f"{self.SECTION}.{name}: {value} must be at least 0 and below 1")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value >= 0, f"{self.SECTION}.{name}: {value} must be >= 0")


@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """p -= rate * g."""

    SECTION: ClassVar[str] = "SGD"
    FIXED: ClassVar[Mapping[str, Fixed]] = {"name": _NAME, "multi_precision": _FULL_PRECISION}


@dataclass(frozen=True)
class Momentum(OptimizerSettings):
    """v = momentum * v + g; p -= rate * v, with use_nesterov p -= rate * (g + momentum * v)."""

    SECTION: ClassVar[str] = "Momentum"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "name": _NAME,
        "multi_precision": _FULL_PRECISION,
        "use_multi_tensor": _SPEED_ONLY,
        "rescale_grad": Fixed((1.0,), "scale Distillation.alpha instead"),
    }
    momentum: float = 0.9
    use_nesterov: bool = False

    def check(self) -> None:
        self._require_not_negative("momentum")
        require(self.momentum > 0 or not self.use_nesterov, "Momentum.use_nesterov: needs momentum above 0")


@dataclass(frozen=True)
class _MomentSettings(OptimizerSettings):
    """Base of the optimizers with moving averages: beta1 of the gradient, beta2 of its square or largest size."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def check(self) -> None:
        self._require_fraction("beta1", "beta2")
        self._require_not_negative("epsilon")


@dataclass(frozen=True)
class Adam(_MomentSettings):
    """Adam with bias correction; `amsgrad` divides by the largest second moment so far."""

    SECTION: ClassVar[str] = "Adam"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "name": _NAME,
        "lazy_mode": _DENSE,
        "multi_precision": _FULL_PRECISION,
        "use_multi_tensor": _SPEED_ONLY,
    }
    amsgrad: bool = False


@dataclass(frozen=True)
class AdamW(_MomentSettings):
    """Adam whose weight decay acts on the parameter itself: p *= 1 - rate * weight_decay. Default decay 0.01."""

    SECTION: ClassVar[str] = "AdamW"
    DECAY: ClassVar[str] = "decoupled"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "name": _NAME,
        "lazy_mode": _DENSE,
        "multi_precision": _FULL_PRECISION,
        "use_lowprecision_moment": _FULL_PRECISION,
        "lr_ratio": _FUNCTION,
        "apply_decay_param_fun": _FUNCTION,
    }
    amsgrad: bool = False


@dataclass(frozen=True)
class Adamax(_MomentSettings):
    """Adam with the infinity norm in place of the second moment."""

    SECTION: ClassVar[str] = "Adamax"


@dataclass(frozen=True)
class NAdam(_MomentSettings):
    """Adam with Nesterov momentum."""

    SECTION: ClassVar[str] = "NAdam"
    momentum_decay: float = 0.004

    def check(self) -> None:
        super().check()
        self._require_not_negative("momentum_decay")


@dataclass(frozen=True)
class RAdam(_MomentSettings):
    """Adam whose adaptive rate is held back while its variance is unknown."""

    SECTION: ClassVar[str] = "RAdam"


@dataclass(frozen=True)
class Adagrad(OptimizerSettings):
    """s += g^2; p -= rate * g / (sqrt(s) + epsilon)."""

    SECTION: ClassVar[str] = "Adagrad"
    epsilon: float = 1e-6
    initial_accumulator_value: float = 0.0

    def check(self) -> None:
        self._require_not_negative("epsilon", "initial_accumulator_value")


@dataclass(frozen=True)
class Adadelta(OptimizerSettings):
    """p -= rate * sqrt((E[d^2] + epsilon) / (E[g^2] + epsilon)) * g."""

    SECTION: ClassVar[str] = "Adadelta"
    epsilon: float = 1e-6
    rho: float = 0.95

    def check(self) -> None:
        self._require_not_negative("epsilon")
        self._require_fraction("rho")


@dataclass(frozen=True)
class RMSProp(OptimizerSettings):
    """v = momentum * v + rate * g / sqrt(E[g^2] + epsilon); p -= v. `centered` subtracts E[g]^2 under the root."""

    SECTION: ClassVar[str] = "RMSProp"
    rho: float = 0.95
    epsilon: float = 1e-6
    momentum: float = 0.0
    centered: bool = False

    def check(self) -> None:
        self._require_not_negative("epsilon", "momentum")
        self._require_fraction("rho")


@dataclass(frozen=True)
class Lamb(OptimizerSettings):
    """Adam's step plus decay, scaled per tensor to the tensor's own norm. Its decay is lamb_weight_decay."""

    SECTION: ClassVar[str] = "Lamb"
    DECAY: ClassVar[str] = "refused"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "name": _NAME,
        "multi_precision": _FULL_PRECISION,
        "exclude_from_weight_decay_fn": _FUNCTION,
    }
    lamb_weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    always_adapt: bool = False

    def check(self) -> None:
        self._require_fraction("beta1", "beta2")
        self._require_not_negative("epsilon", "lamb_weight_decay")


@dataclass(frozen=True)
class ASGD(OptimizerSettings):
    """Stochastic average gradient: the mean of the last gradients of batch_num batches. Keeps batch_num gradients."""

    SECTION: ClassVar[str] = "ASGD"
    FIXED: ClassVar[Mapping[str, Fixed]] = {"name": _NAME, "multi_precision": _FULL_PRECISION}
    batch_num: int = 1

    def check(self) -> None:
        require(self.batch_num > 0, f"ASGD.batch_num: {self.batch_num} must be > 0")


OPTIMIZERS: Mapping[str, type[OptimizerSettings]] = {
    cls.SECTION: cls
    for cls in (SGD, Momentum, Adam, AdamW, Adamax, NAdam, RAdam, Adagrad, Adadelta, RMSProp, Lamb, ASGD)
}
REFUSED_OPTIMIZERS: Mapping[str, str] = {
    "LBFGS": "it evaluates the loss several times in a step, which mini-batch training does not; use Adam",
    "Rprop": "it is for full batches, and PaddleSlim cannot build it either; use RMSProp",
    "Lars": "paddle.optimizer has none; use Momentum or Lamb",
    "LarsMomentum": "paddle.optimizer has none; use Momentum or Lamb",
}


@dataclass(frozen=True)
class ClipGradByGlobalNorm(Settings):
    """All gradients times clip_norm / max(norm of all together, clip_norm)."""

    SECTION: ClassVar[str] = "ClipGradByGlobalNorm"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "group_name": Fixed(("default_group",), "all parameters form one group"),
        "auto_skip_clip": _SPEED_ONLY,
    }
    clip_norm: float

    def check(self) -> None:
        require(self.clip_norm > 0, f"{self.SECTION}.clip_norm: {self.clip_norm} must be > 0")


@dataclass(frozen=True)
class ClipGradByNorm(Settings):
    """Each gradient times clip_norm / max(its own norm, clip_norm)."""

    SECTION: ClassVar[str] = "ClipGradByNorm"
    clip_norm: float

    def check(self) -> None:
        require(self.clip_norm > 0, f"{self.SECTION}.clip_norm: {self.clip_norm} must be > 0")


@dataclass(frozen=True)
class ClipGradByValue(Settings):
    """Each element of a gradient into [min, max]; `min` is -max where it is not given."""

    SECTION: ClassVar[str] = "ClipGradByValue"
    max: float
    min: float | None = None

    def check(self) -> None:
        if self.min is None:
            require(self.max > 0, f"{self.SECTION}.max: {self.max} must be > 0 where min is not given")
            object.__setattr__(self, "min", -self.max)
        assert self.min is not None
        require(self.min < self.max, f"{self.SECTION}.min: {self.min} must be below max {self.max}")


@dataclass(frozen=True)
class L1Decay(Settings):
    """g += coeff * sign(p), after clipping."""

    SECTION: ClassVar[str] = "L1Decay"
    coeff: float = 0.0

    def check(self) -> None:
        require(self.coeff >= 0, f"{self.SECTION}.coeff: {self.coeff} must be >= 0")


@dataclass(frozen=True)
class L2Decay(Settings):
    """g += coeff * p, after clipping."""

    SECTION: ClassVar[str] = "L2Decay"
    coeff: float = 0.0

    def check(self) -> None:
        require(self.coeff >= 0, f"{self.SECTION}.coeff: {self.coeff} must be >= 0")


CLIPS: Mapping[str, type[Settings]] = {
    cls.SECTION: cls for cls in (ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue)
}
REGULARIZERS: Mapping[str, type[Settings]] = {"L1Decay": L1Decay, "L2Decay": L2Decay}


def _typed(known: Mapping[str, type[Settings]], refused: Mapping[str, str]) -> dict[str, object]:
    def before(value: object, where: str) -> object:
        if value is None or isinstance(value, Settings):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {value!r} is not a mapping with 'type'")
        return read_typed(value, known, refused, where)

    return {"before": before}


@dataclass(frozen=True)
class OptimizerBuilder(Settings):
    """TrainConfig.optimizer_builder.

    optimizer: {type: <name in paddle.optimizer>, its arguments}. weight_decay: a number is L2Decay (AdamW: decoupled).
    regularizer: {type: L1Decay | L2Decay, coeff}, in place of weight_decay.
    grad_clip: {type: ClipGradBy..., its arguments}.
    """

    SECTION: ClassVar[str] = "TrainConfig.optimizer_builder"
    optimizer: OptimizerSettings = field(default_factory=SGD, metadata=_typed(OPTIMIZERS, REFUSED_OPTIMIZERS))
    weight_decay: float | None = None
    regularizer: L1Decay | L2Decay | None = field(default=None, metadata=_typed(REGULARIZERS, {}))
    grad_clip: ClipGradByGlobalNorm | ClipGradByNorm | ClipGradByValue | None = field(
        default=None, metadata=_typed(CLIPS, {})
    )

    def check(self) -> None:
        where, name = self.SECTION, self.optimizer.SECTION
        require(
            self.weight_decay is None or self.regularizer is None,
            f"{where}: weight_decay and regularizer are both given, and the former is an L2Decay; keep one",
        )
        require(self.weight_decay is None or self.weight_decay >= 0, f"{where}.weight_decay: must be >= 0")
        if self.optimizer.DECAY != "coupled":
            require(
                self.regularizer is None, f"{where}.regularizer: {name} has a decay of its own; remove the regularizer"
            )
        if self.optimizer.DECAY == "refused":
            require(self.weight_decay is None, f"{where}.weight_decay: {name} uses lamb_weight_decay; set that instead")

    @property
    def l1_decay(self) -> float:
        """Coefficient of sign(p) in the gradient."""
        return self.regularizer.coeff if isinstance(self.regularizer, L1Decay) else 0.0

    @property
    def l2_decay(self) -> float:
        """Coefficient of p in the gradient; of AdamW and Lamb that of the decoupled decay."""
        if isinstance(self.optimizer, Lamb):
            return self.optimizer.lamb_weight_decay
        if isinstance(self.optimizer, AdamW) and self.weight_decay is None:
            return 0.01
        if isinstance(self.regularizer, L2Decay):
            return self.regularizer.coeff
        return self.weight_decay or 0.0
