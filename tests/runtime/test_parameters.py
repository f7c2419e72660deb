"""Scales, weights and biases of all layers at once give what each quantizer gives by itself."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.numerics.qparams import ACTIVATION_MANTISSAS, WEIGHT_MANTISSAS, QuantSpec, symmetric
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.fake_quantize import FakeQuantize, fake_quantize_channels
from fullquant.runtime.kernels import channel_jobs
from fullquant.runtime.parameters import Biases, Scales, weight_groups
from tests.calibrating import min_max_qparams
from tests.graphs import small_classifier


def _quantizer(scale: float, mantissas: tuple[float, ...] = ()) -> FakeQuantize:
    return FakeQuantize(symmetric(QuantSpec(-127, 127, mantissas=mantissas), scale))


def _student(model: ir.Model) -> GraphModule:
    placement = place(model, "paddle_lite", PlacementOptions())
    x = np.random.default_rng(2).normal(0, 1, (8, 3, 8, 8)).astype(np.float32)
    qparams = min_max_qparams(GraphModule(model), model, placement, [x])
    for decision in placement:
        if decision.kind == "weight" and decision.spec is not None:
            channels = model.graph.initializers[decision.tensor].const_value.shape[decision.spec.axis or 0]
            qparams[decision.tensor] = symmetric(decision.spec, np.full(channels, 0.01, np.float32))
    return GraphModule(model, placement=placement, qparams=qparams)


def _channels(*scales: float, axis: int = 0, mantissas: tuple[float, ...] = ()) -> FakeQuantize:
    spec = QuantSpec(-127, 127, axis=axis, mantissas=mantissas)
    return FakeQuantize(symmetric(spec, np.array(scales, np.float32)))


def test_scales_in_use_are_those_of_the_quantizers_until_released() -> None:
    owner = _quantizer(0.3, ACTIVATION_MANTISSAS)
    sharing = FakeQuantize(symmetric(owner.spec, 0.3), owner=owner)
    everyone = [owner, sharing, _quantizer(0.7), _channels(0.1, 0.2), _channels(0.3, 0.4, mantissas=WEIGHT_MANTISSAS)]
    scales = Scales(everyone)
    scales.use()
    for quantizer in everyone:
        assert torch.equal(quantizer.current(), quantizer.step())
        if quantizer.spec.axis is None:
            assert quantizer.scale_value() == float(quantizer.step())
    owner.log_scale.data.add_(1.0)
    assert sharing.scale_value() != float(owner.step())
    scales.release()
    assert sharing.scale_value() == float(owner.step())


def test_no_quantizers_have_no_scales() -> None:
    scales = Scales([])
    scales.use()
    assert scales.vector is None
    assert Biases([], [], [], scales)([]) == ()


def test_biases_lie_on_the_grid_of_the_products_and_pass_their_gradient() -> None:
    inputs = [_quantizer(0.5), _quantizer(0.25)]
    weights = [_channels(0.5, 0.125), _quantizer(0.5)]
    biases = [torch.tensor([0.3, 0.3], requires_grad=True), torch.tensor([0.3, 0.2, -0.19], requires_grad=True)]
    scales = Scales([*inputs, *weights])
    round_biases = Biases([2, 3], inputs, weights, scales)
    scales.use()
    rounded = round_biases(biases)
    assert rounded[0].tolist() == [0.25, 0.3125]
    assert rounded[1].tolist() == [0.25, 0.25, -0.25]
    (rounded[0].sum() + 2 * rounded[1].sum()).backward()
    assert biases[0].grad is not None
    assert biases[1].grad is not None
    assert biases[0].grad.tolist() == [1, 1]
    assert biases[1].grad.tolist() == [2, 2, 2]


@given(shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40000)), max_size=5))
def test_the_jobs_cover_every_channel_once(shapes: list[tuple[int, int]]) -> None:
    found = [(k, c, first + c - begin) for k, begin, count, length, first in channel_jobs(shapes).tolist()
             for c in range(begin, begin + count) if length == shapes[k][1]]  # fmt: skip
    channels = [(k, c) for k, (count, _) in enumerate(shapes) for c in range(count)]
    assert found == [(*channel, place) for place, channel in enumerate(channels)]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    shapes=st.lists(st.sampled_from([(1, 3, 3, 3), (8, 1, 5, 5), (70, 300, 1, 1), (5, 7), (40, 2, 3, 3)]), min_size=1),
    unread=st.sets(st.integers(0, 5)),
)
def test_weights_together_are_the_weights_one_by_one(
    seed: int, shapes: list[tuple[int, ...]], unread: set[int]
) -> None:
    random = np.random.default_rng(seed)
    weights, quantizers = [], []
    for shape in shapes:
        w = torch.from_numpy(random.normal(0, 1, shape).astype(np.float32))
        weights.append(w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w)
        quantizers.append(_channels(*random.uniform(0.005, 0.03, shape[0]), mantissas=WEIGHT_MANTISSAS))
    # The gradient of a convolution may come in another layout than its weight.
    upstream = [torch.from_numpy(random.normal(0, 1, shape).astype(np.float32)) for shape in shapes]
    found = []
    for together in (True, False):
        leaves = [w.clone().requires_grad_(True) for w in weights]
        for q in quantizers:
            q.log_scale.grad = None
        if together:
            (group,) = weight_groups(leaves, quantizers)
            assert group.members == tuple(range(len(shapes)))
            results = group(leaves)
        else:
            results = tuple(
                fake_quantize_channels(w, q.log_scale, 0, q.qlow, q.qhigh, scale=q.step())
                for w, q in zip(leaves, quantizers, strict=True)
            )
        read = [(y * g).sum() for k, (y, g) in enumerate(zip(results, upstream, strict=True)) if k not in unread]
        if read:
            torch.stack(read).sum().backward()
        found.append((results, [w.grad for w in leaves], [q.log_scale.grad for q in quantizers]))
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_what_the_kernel_does_not_take_is_in_no_group() -> None:
    columns = torch.zeros(3, 2)
    taken = torch.zeros(2, 3, 1, 1)
    strided = torch.zeros(2, 3, 4, 4)[:, :, ::2]
    double = torch.zeros(2, 3, dtype=torch.float64)
    quantizers = [_channels(1, 1, axis=1), _channels(1, 1), _channels(1, 1), _channels(1, 1), _quantizer(1)]
    (group,) = weight_groups([columns, taken, strided, double, taken], quantizers)
    assert group.members == (1,)


def test_large_weights_are_groups_of_their_own_so_that_gradients_can_be_sent_early() -> None:
    weights = [torch.zeros(4, 2**18), torch.zeros(4, 2**17), torch.zeros(4, 2**17), torch.zeros(1, 1)]
    groups = weight_groups(weights, [_channels(1, 1, 1, 1)] * 3 + [_channels(1)])
    assert [group.members for group in groups] == [(0,), (1, 2), (3,)]


def test_a_copy_of_a_student_learns_by_itself() -> None:
    student = _student(small_classifier())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = student(images).detach()
    other = copy.deepcopy(student)
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    assert not torch.equal(other(images), before)
    assert torch.equal(student(images), before)
