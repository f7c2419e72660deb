"""All scales, weights and biases of a student at once: a step computes each once, in a few operations for the network.

One by one, the eight small operations of a scale cost more than the kernel that uses it: 250 scales of a MobileNetV3
took 13 ms of a step of 200 ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fullquant.runtime import kernels
from fullquant.runtime.fake_quantize import FakeQuantize, is_dense, like, step_size

Tensor = torch.Tensor

# Weights of one group, in elements. Their gradients arrive together: with several processes, the first groups are sent
# while the gradients of the others are still computed.
_GROUP = 2**20


class Scales:
    """The scales of all quantizers as one vector; those that share a parameter share the entries.

    use: computes the vector, and gives each quantizer its scale in use. release: from then on each computes its scale
    itself, for the parameters may have changed.
    """

    def __init__(self, quantizers: Sequence[FakeQuantize]) -> None:
        self.quantizers = list(quantizers)
        seen: set[int] = set()
        groups: dict[tuple[float, ...], list[FakeQuantize]] = {}
        for quantizer in self.quantizers:
            if id(quantizer.log_scale) not in seen:
                seen.add(id(quantizer.log_scale))
                groups.setdefault(quantizer.spec.mantissas, []).append(quantizer)
        self._groups = list(groups.items())
        self._owners = [quantizer for members in groups.values() for quantizer in members]
        self._sizes = [quantizer.log_scale.numel() for quantizer in self._owners]
        first = 0
        for quantizer, size in zip(self._owners, self._sizes, strict=True):
            quantizer.in_use.first = first
            first += size
        self.vector: Tensor | None = None

    def use(self) -> None:
        """Computes all scales."""
        if not self._owners:
            return
        with torch.no_grad():
            steps = [
                step_size(torch.hstack([q.log_scale for q in members]), mantissas)
                for mantissas, members in self._groups
            ]
        self.vector = steps[0] if len(steps) == 1 else torch.cat(steps)
        numbers = None if self.vector.is_cuda else self.vector.tolist()
        for quantizer, part in zip(self._owners, torch.split(self.vector, self._sizes), strict=True):
            if numbers is not None and quantizer.spec.axis is None:
                quantizer.in_use.number = numbers[quantizer.in_use.first]
            else:
                quantizer.in_use.value = part.view(quantizer.log_scale.shape)

    def release(self) -> None:
        """Forgets them."""
        self.vector = None
        for quantizer in self._owners:
            quantizer.in_use.value = quantizer.in_use.number = None


class Biases:
    """The biases of layers that read integers, on the int32 grid of step scale_x * scale_w, as kernels add them.

    sizes: of each bias. inputs, weights: the quantizers of the layer's input, shape (), and of its weight, () or (C,).
    """

    def __init__(
        self, sizes: Sequence[int], inputs: Sequence[FakeQuantize], weights: Sequence[FakeQuantize], scales: Scales
    ) -> None:
        self.sizes, self._scales = list(sizes), scales
        self._of_input = _entries(inputs, sizes)
        self._of_weight = _entries(weights, sizes)

    def __call__(self, biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each bias (C,) rounded; the gradient passes. Between `Scales.use` and `release`."""
        vector = self._scales.vector
        if not biases or vector is None:
            return ()
        with torch.no_grad():
            # The entries follow the scales to where they are computed.
            self._of_input, self._of_weight = self._of_input.to(vector.device), self._of_weight.to(vector.device)
            scale = vector[self._of_input] * vector[self._of_weight]
            steps = torch.round(torch.cat([bias.reshape(-1) for bias in biases]).double() / scale.double())
            rounded = torch.split(steps.float() * scale, self.sizes)
        result: tuple[Tensor, ...] = _ReplaceAll.apply(*biases, *rounded)  # type: ignore[no-untyped-call]
        return result


def _entries(quantizers: Sequence[FakeQuantize], sizes: Sequence[int]) -> Tensor:
    """The place of the scale of each channel in the vector."""
    places = [torch.zeros(0, dtype=torch.int64)]
    for quantizer, size in zip(quantizers, sizes, strict=True):
        first, count = quantizer.in_use.first, quantizer.log_scale.numel()
        places.append(torch.arange(first, first + count) if count == size else torch.full((size,), first))
    return torch.cat(places)


class _ReplaceAll(torch.autograd.Function):
    """The second half of the tensors forward, the gradients to the first half."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        half = len(tensors) // 2
        return tuple(used.view(learned.shape) for learned, used in zip(tensors[:half], tensors[half:], strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradients, *([None] * len(gradients)))


class WeightGroup:
    """Weights with a scale for each index of their first axis, fake-quantized in one call on the CPU.

    members: positions in the list that `weight_groups` was given. The gradients arrive when all weights have theirs.
    """

    def __init__(self, members: Sequence[int], weights: Sequence[Tensor], quantizers: Sequence[FakeQuantize]) -> None:
        self.members = tuple(members)
        self.quantizers = tuple(quantizers)
        shapes = [(len(w), math.prod(w.shape[1:])) for w in weights]
        self.sizes = [channels for channels, _ in shapes]
        self.jobs = kernels.channel_jobs(shapes)
        self.ends = tuple(np.array([getattr(q, end) for q in quantizers], np.float32) for end in ("qlow", "qhigh"))

    def __call__(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The members fake-quantized; the gradients pass to them and to the logarithms of their scales."""
        weights = [w if is_dense(w) else w.contiguous() for w in weights]
        result: tuple[Tensor, ...] = _Weights.apply(  # type: ignore[no-untyped-call]
            self, *weights, *[q.log_scale for q in self.quantizers]
        )
        return result


def weight_groups(weights: Sequence[Tensor], quantizers: Sequence[FakeQuantize]) -> list[WeightGroup]:
    """Neighbouring weights together, about 2**20 elements each; those that the kernel does not take are in no group."""
    groups: list[list[int]] = []
    elements = _GROUP
    for k, (weight, quantizer) in enumerate(zip(weights, quantizers, strict=True)):
        if not _taken(weight, quantizer):
            continue
        if elements >= _GROUP:
            groups.append([])
            elements = 0
        groups[-1].append(k)
        elements += weight.numel()
    return [WeightGroup(group, [weights[k] for k in group], [quantizers[k] for k in group]) for group in groups]


def _taken(weight: Tensor, quantizer: FakeQuantize) -> bool:
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and quantizer.spec.axis == 0 and weight.ndim > 1 and is_dense(weight) and len(weight) > 0


class _Weights(torch.autograd.Function):
    """(group, weights..., log_scales...) -> the weights fake-quantized."""

    @staticmethod
    def forward(ctx: Any, group: WeightGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights = tensors[: len(group.members)]
        results = tuple(torch.empty_like(w) for w in weights)
        scale = torch.cat([q.current() for q in group.quantizers])
        kernels.many_forward(_addresses(weights), _addresses(results), group.jobs, scale.numpy(), *group.ends)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scale, *weights)
        ctx.group = group
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        scale, *weights = ctx.saved_tensors
        group = ctx.group
        # Held until the kernel has read them: what `like` copies has no other owner.
        read = [None if g is None else like(g, w) for g, w in zip(gradients, weights, strict=True)]
        written = [None if g is None else torch.empty_like(w) for g, w in zip(gradients, weights, strict=True)]
        total = kernels.many_backward(
            _addresses(weights), _addresses(read), _addresses(written), group.jobs, scale.numpy(), *group.ends
        )
        parts = torch.split(torch.from_numpy(total), group.sizes)
        return (None, *written, *[None if g is None else part for g, part in zip(gradients, parts, strict=True)])


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return np.array([0 if t is None else t.data_ptr() for t in tensors], np.int64)


class ParameterPlan:
    """What a student computes of its parameters in each pass.

    initial: {slot: initializer}; quantizers: {slot: its FakeQuantize}; grids: {slot of a bias: (quantizers of the
    layer's input, of its weight)}; every: all quantizers of the student.
    """

    def __init__(
        self,
        device: torch.device,
        initial: Mapping[int, Tensor],
        quantizers: Mapping[int, FakeQuantize],
        grids: Mapping[int, tuple[FakeQuantize, FakeQuantize]],
        every: Sequence[FakeQuantize],
    ) -> None:
        self.device = device
        self.scales = Scales(every)
        slots = list(quantizers)
        found = weight_groups([initial[slot] for slot in slots], list(quantizers.values()))
        self._groups = [([slots[k] for k in group.members], group) for group in found]
        grouped = {slot for members, _ in self._groups for slot in members}
        self._alone = {slot: quantizer for slot, quantizer in quantizers.items() if slot not in grouped}
        self._biased = list(grids)
        self._biases = Biases(
            [initial[slot].numel() for slot in grids], [x for x, _ in grids.values()], [w for _, w in grids.values()],
            self.scales,
        )  # fmt: skip

    def values(self, initial: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Each initializer as the steps read it: fake-quantized, rounded, or as it is. While the scales are in use."""
        values = {
            slot: self._alone[slot](tensor) if slot in self._alone else tensor for slot, tensor in initial.items()
        }
        for slots, group in self._groups:
            values.update(zip(slots, group([initial[slot] for slot in slots]), strict=True))
        values.update(zip(self._biased, self._biases([initial[slot] for slot in self._biased]), strict=True))
        return values
