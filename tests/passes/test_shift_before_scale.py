"""Normalisation inside the model: exact where it folds, and left where padding forbids it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes import prepare
from fullquant.passes.fold_scale_shift import fold_scale_shift
from fullquant.passes.shift_before_scale import shift_before_scale
from tests.graph.toy_models import check, operators, run
from tests.passes.test_fold_affine import CONV, model_of

STD = np.float32([0.229, 0.224, 0.225, 0.5]).reshape(1, 4, 1, 1)
MEAN = np.float32([0.485, 0.456, 0.406, 0.1]).reshape(1, 4, 1, 1)
PADDED = "Conv <pads = [1,1,1,1]>"


@given(
    form=st.sampled_from(["Mul(x, s)  b = Add(a, t)", "Div(x, s)  b = Sub(a, t)", "Mul(s, x)  b = Add(t, a)"]),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4).filter(any),
    group=st.sampled_from([1, 2, 4]),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_in_front_of_a_padded_convolution(form: str, pads: list[int], group: int, wide: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (1, 4, 1, 1) if wide else ()
    factor = random.uniform(0.2, 2) * random.choice([-1, 1])
    model = model_of(
        f"g (float[N,4,6,6] x, float[8,{4 // group},3,3] w, float[8] k) => (float y) "
        f"{{ a = {form}  y = Conv <pads = {pads}, group = {group}> (b, w, k) }}",
        s=np.full(shape, factor), t=random.normal(size=shape),
    )  # fmt: skip
    assert check(shift_before_scale, model) == 1
    assert operators(model) == ["Add", "Conv"]


def test_several_convolutions_of_which_one_pads() -> None:
    body = f"a = Mul(x, s)  b = Add(a, t)  c = {PADDED} (b, w)  d = Conv <pads = [1,1,1,1]> (b, w, k)  y = Add(c, d)"
    model = model_of(f"g ({CONV}) => (float y) {{ {body} }}", s=np.float32(1 / 255), t=-MEAN)
    assert check(shift_before_scale, model) == 1
    assert operators(model) == ["Add", "Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, s)  b = Add(a, t)  y = Conv(b, w)",  # fold_scale_shift takes all of it
        f"a = Mul(x, v)  b = Add(a, t)  y = {PADDED} (b, w)",  # affine_to_depthwise makes one convolution of it
        f"a = Mul(x, s)  b = Add(a, t)  c = {PADDED} (b, w)  y = Add(c, m)  z = ReduceMax(a)",
        f"a = Mul(x, s)  b = Add(a, t)  r = Relu(b)  y = {PADDED} (r, w)",
        f"a = Mul(x, s)  b = Add(a, t)  c = {PADDED} (b, w)  d = GlobalMaxPool(b)  e = ReduceSum(d)  y = Add(c, e)",
        f"a = Mul(x, s)  b = Sub(t, a)  y = {PADDED} (b, w)",
        f"r = Relu(x)  a = Mul(r, s)  b = Add(a, t)  y = {PADDED} (b, w)",  # within the network
    ],
)
def test_what_stays(body: str) -> None:
    constants = {"s": np.float32(0.5), "v": 1 / STD, "t": -MEAN, "m": np.float32(1)}
    used = {name: array for name, array in constants.items() if f", {name})" in body or f"({name}, " in body}
    assert check(shift_before_scale, model_of(f"g ({CONV}) => (float y) {{ {body} }}", **used)) == 0


def test_a_scale_of_almost_nothing_stays() -> None:
    body = f"a = Mul(x, s)  b = Add(a, t)  y = {PADDED} (b, w)"
    for zero in (0.0, 1e-45):
        scale = np.float32(zero)
        assert check(shift_before_scale, model_of(f"g ({CONV}) => (float y) {{ {body} }}", s=scale, t=MEAN)) == 0


@pytest.mark.parametrize(
    ("front", "padded", "plain"),
    [
        ("a = Sub(x, mean)  n = Div(a, std)", ["Add", "Conv"], ["Conv"]),
        ("a = Div(x, top)  b = Sub(a, mean)  n = Div(b, std)", ["Add", "Conv"], ["Conv"]),
        ("a = Mul(x, inverse)  n = Add(a, shift)", ["Conv", "Conv"], ["Conv"]),
        ("a = Mul(x, ratio)  n = Sub(a, one)", ["Add", "Conv"], ["Conv"]),
        ("n = Div(x, top)", ["Conv"], ["Conv"]),
    ],
)
def test_what_becomes_of_a_whole_normalisation(front: str, padded: list[str], plain: list[str]) -> None:
    """All passes: nothing is left without padding, one operator with it."""
    constants = {
        "mean": MEAN, "std": STD, "top": np.float32(255), "inverse": 1 / STD, "shift": -MEAN / STD,
        "ratio": np.float32(1 / 127.5), "one": np.float32(1),
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if f", {name})" in front}
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 6)).astype(np.float32)
    for conv, left in ((PADDED, padded), ("Conv", plain)):
        model = model_of(f"g ({CONV}) => (float y) {{ {front}  y = {conv} (n, w, k) }}", **used)
        prepared = prepare(model)
        assert operators(prepared) == left
        np.testing.assert_allclose(run(prepared, images), run(model, images), rtol=1e-4, atol=2e-3)


def test_the_older_pass_leaves_the_pair() -> None:
    body = f"a = Mul(x, s)  b = Add(a, t)  y = {PADDED} (b, w)"
    model = model_of(f"g ({CONV}) => (float y) {{ {body} }}", s=np.float32(1 / 255), t=-MEAN)
    assert fold_scale_shift(model) == 0
