"""The optimizers of paddle.optimizer in torch: the same rules, defaults and order of clipping and decay.

Paddle first clips the gradients, then adds the regularizer's gradient, then updates. torch.optim is used where its rule
gives the same numbers; the other rules are here. Source: PaddlePaddle 3.3, paddle.optimizer and paddle.nn.ClipGradBy*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from fullquant.config import optimizer as configured
from fullquant.config.optimizer import OptimizerBuilder, OptimizerSettings

Group: TypeAlias = Mapping[str, Any]
Closure: TypeAlias = Callable[[], float]

_GROUP_KEYS = {"params", "lr_scale", "weight_decay"}


def build_optimizer(
    builder: OptimizerBuilder, parameter_groups: Iterable[torch.Tensor] | Iterable[Group], learning_rate: float = 0.001
) -> Optimizer:
    """The optimizer that TrainConfig.optimizer_builder describes; pass config.train.optimizer.

    parameter_groups: parameters, or mappings {"params": [...], "lr_scale": 1.0, "weight_decay": <number>}. lr_scale
        multiplies the rate, as "learning_rate" does in Paddle's groups; weight_decay replaces the builder's
        coefficient, 0 switches decay off for the group.
    learning_rate: the rate until `set_lr` gives another.
    The gradients in `.grad` are clipped in place by `step()`. ValueError for an unknown key of a group.
    """
    groups = [_group(builder, item, learning_rate) for item in _as_groups(parameter_groups)]
    optimizer = _make(builder.optimizer, groups, learning_rate)
    if builder.grad_clip is not None or builder.l1_decay:
        clip = builder.grad_clip

        def prepare(stepping: Optimizer, args: object, kwargs: object) -> None:
            if clip is not None:
                clip_gradients(clip, [p.grad for group in stepping.param_groups for p in group["params"]])
            _add_l1(stepping)

        optimizer.register_step_pre_hook(prepare)
    return optimizer


def set_lr(optimizer: Optimizer, learning_rate: float) -> None:
    """The rate of the next step: learning_rate times each group's lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def _as_groups(parameter_groups: Iterable[torch.Tensor] | Iterable[Group]) -> list[Group]:
    items: list[Any] = list(parameter_groups)
    if items and isinstance(items[0], torch.Tensor):
        return [{"params": items}]
    return items


def _group(builder: OptimizerBuilder, group: Group, learning_rate: float) -> dict[str, Any]:
    unknown = set(group) - _GROUP_KEYS
    if unknown:
        raise ValueError(f"parameter group: unknown keys {sorted(unknown)}; known: {sorted(_GROUP_KEYS)}")
    lr_scale = float(group.get("lr_scale", 1.0))
    is_l1 = isinstance(builder.regularizer, configured.L1Decay)
    decay = float(group.get("weight_decay", builder.l1_decay if is_l1 else builder.l2_decay))
    return {
        "params": list(group["params"]),
        "lr": learning_rate * lr_scale,
        "lr_scale": lr_scale,
        "weight_decay": 0.0 if is_l1 else decay,
        "l1_decay": decay if is_l1 else 0.0,
    }


def clip_gradients(
    clip: configured.ClipGradByGlobalNorm | configured.ClipGradByNorm | configured.ClipGradByValue,
    gradients: Iterable[torch.Tensor | None],
) -> None:
    """Clips gradients in place; None entries are parameters without one.

    By global norm: g *= c / max(norm of all, c). By norm: g *= c / max(norm of g, c). By value: g into [min, max].
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return
    with torch.no_grad():
        if isinstance(clip, configured.ClipGradByValue):
            for gradient in present:
                gradient.clamp_(clip.min, clip.max)
            return
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in present])
        if isinstance(clip, configured.ClipGradByGlobalNorm):
            norms = torch.linalg.vector_norm(norms).expand(len(present))
        factors = clip.clip_norm / torch.clamp(norms, min=clip.clip_norm)
        for gradient, factor in zip(present, factors, strict=True):
            gradient.mul_(factor)


def _add_l1(optimizer: Optimizer) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"] if group["l1_decay"] else ():
                if p.grad is not None:
                    p.grad.add_(torch.sign(p), alpha=group["l1_decay"])


class _PerParameter(Optimizer, ABC):
    """Base of the rules that torch.optim lacks: `update` changes one parameter. L2 decay is added to the gradient."""

    couples_decay = True

    def __init__(self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> None:
        self.settings = settings
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` evaluates the loss again, as in torch.optim."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    gradient = p.grad
                    if self.couples_decay and group["weight_decay"]:
                        gradient = gradient.add(p, alpha=group["weight_decay"])
                    self.update(p, gradient, group)
        return loss

    @abstractmethod
    def update(self, p: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        """Changes `p` in place with the gradient `g`; state in self.state[p]."""

    def slot(self, p: torch.Tensor, name: str, value: float = 0.0) -> torch.Tensor:
        """A state tensor in the shape of `p`, filled with `value` at first."""
        state = self.state[p]
        if name not in state:
            state[name] = torch.full_like(p, value)
        tensor: torch.Tensor = state[name]
        return tensor

    def count(self, p: torch.Tensor) -> int:
        """The number of this update of `p`, from 1."""
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        return int(state["step"])


class Adamax(_PerParameter):
    """u = max(|g|, beta2 * u + epsilon); p -= rate / (1 - beta1^t) * m / u. torch adds epsilon to |g| instead."""

    settings: configured.Adamax

    def update(self, p: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        """See the class."""
        t, m, u = self.count(p), self.slot(p, "moment"), self.slot(p, "inf_norm")
        m.lerp_(g, 1 - self.settings.beta1)
        torch.maximum(g.abs(), u.mul_(self.settings.beta2).add_(self.settings.epsilon), out=u)
        p.addcdiv_(m, u, value=-group["lr"] / (1 - self.settings.beta1**t))


class RMSProp(_PerParameter):
    """v = momentum * v + rate * g / sqrt(E[g^2] - centered * E[g]^2 + epsilon); p -= v.

    torch puts epsilon outside the root and the rate outside the momentum.
    """

    settings: configured.RMSProp

    def update(self, p: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        """See the class."""
        mean_square, v = self.slot(p, "mean_square"), self.slot(p, "momentum")
        mean_square.mul_(self.settings.rho).addcmul_(g, g, value=1 - self.settings.rho)
        variance = mean_square
        if self.settings.centered:
            mean = self.slot(p, "mean_gradient").lerp_(g, 1 - self.settings.rho)
            variance = mean_square.addcmul(mean, mean, value=-1)
        v.mul_(self.settings.momentum).addcdiv_(g, (variance + self.settings.epsilon).sqrt_(), value=group["lr"])
        p.sub_(v)


class Lamb(_PerParameter):
    """r = m' / (sqrt(v') + epsilon) + decay * p; p -= rate * |p| / |r| * r, with bias-corrected moments m', v'.

    The ratio is 1 where a norm is 0, and for tensors without decay unless always_adapt.
    """

    couples_decay = False
    settings: configured.Lamb

    def update(self, p: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        """See the class."""
        t, m, v = self.count(p), self.slot(p, "moment1"), self.slot(p, "moment2")
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        r = (m / (1 - beta1**t)).div_((v / (1 - beta2**t)).sqrt_().add_(self.settings.epsilon))
        r.add_(p, alpha=group["weight_decay"])
        ratio = 1.0
        if group["weight_decay"] or self.settings.always_adapt:
            size, change = float(torch.linalg.vector_norm(p)), float(torch.linalg.vector_norm(r))
            ratio = size / change if size > 0 and change > 0 else 1.0
        p.add_(r, alpha=-group["lr"] * ratio)


class ASGD(_PerParameter):
    """d += g - y[i]; y[i] = g; p -= rate * d / min(t, n), i = (t - 1) mod n: the mean of the last n gradients.

    The state grows to n gradients per parameter; Paddle takes that memory at once.
    """

    settings: configured.ASGD

    def update(self, p: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        """See the class."""
        t, n = self.count(p), self.settings.batch_num
        d, y = self.slot(p, "sum"), self.slot(p, f"gradient_{(t - 1) % n}")
        d.add_(g).sub_(y)
        y.copy_(g)
        p.add_(d, alpha=-group["lr"] / min(t, n))


def fused(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether torch's one-kernel form of an optimizer takes these: floating point, all on the CPU or on a GPU.

    Operator by operator, Adam takes 15 small operations for each parameter: 7 ms of a 200 ms step of a small network.
    """
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def _parameters(groups: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


@singledispatch
def _make(settings: OptimizerSettings, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    """The torch optimizer of one class of settings."""
    raise TypeError(f"no optimizer for {settings!r}")


@_make.register
def _sgd(settings: configured.SGD, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.SGD(groups, lr, fused=fused(_parameters(groups)))


@_make.register
def _momentum(settings: configured.Momentum, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.SGD(
        groups, lr, momentum=settings.momentum, nesterov=settings.use_nesterov, fused=fused(_parameters(groups))
    )


@_make.register
def _adam(settings: configured.Adam, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    betas = (settings.beta1, settings.beta2)
    one_pass = fused(_parameters(groups))
    return torch.optim.Adam(groups, lr, betas, settings.epsilon, amsgrad=settings.amsgrad, fused=one_pass)


@_make.register
def _adamw(settings: configured.AdamW, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    betas = (settings.beta1, settings.beta2)
    one_pass = fused(_parameters(groups))
    return torch.optim.AdamW(groups, lr, betas, settings.epsilon, amsgrad=settings.amsgrad, fused=one_pass)


@_make.register
def _nadam(settings: configured.NAdam, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.NAdam(groups, lr, betas, settings.epsilon, momentum_decay=settings.momentum_decay)


@_make.register
def _radam(settings: configured.RAdam, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.RAdam(groups, lr, (settings.beta1, settings.beta2), settings.epsilon)


@_make.register
def _adagrad(settings: configured.Adagrad, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    start = settings.initial_accumulator_value
    return torch.optim.Adagrad(groups, lr, initial_accumulator_value=start, eps=settings.epsilon)


@_make.register
def _adadelta(settings: configured.Adadelta, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.Adadelta(groups, lr, rho=settings.rho, eps=settings.epsilon)


@_make.register(configured.Adamax)
@_make.register(configured.RMSProp)
@_make.register(configured.Lamb)
@_make.register(configured.ASGD)
def _own(settings: OptimizerSettings, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    rules: dict[str, type[_PerParameter]] = {"Adamax": Adamax, "RMSProp": RMSProp, "Lamb": Lamb, "ASGD": ASGD}
    return rules[settings.SECTION](groups, settings)
