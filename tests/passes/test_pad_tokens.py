"""Tokens beside a sequence as a Pad and one addition; ONNX Runtime's output stays, for any batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes import prepare
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.pad_tokens import pad_tokens
from tests.graph.toy_models import check, feeds, operators, parse

LENGTH, WIDTH = 5, 4
_RNG = np.random.default_rng(8)
BATCH = "s = Shape <start = 0, end = 1> (x)  "


def _normal(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _model(nodes: str, *, batch: str = "N", **constants: object) -> ir.Model:
    model = parse(f"g (float[{batch},{LENGTH},{WIDTH}] x) => (float y) {{ {nodes} }}", **constants)  # type: ignore[arg-type]
    infer_shapes(model)
    return model


def _repeated(name: str, rows: int) -> tuple[str, dict[str, np.ndarray]]:
    """Nodes that repeat a token of so many rows for the batch, and their constants."""
    nodes = f"t{name} = Concat <axis = 0> (s, k{name})  e{name} = Expand (c{name}, t{name})  "
    return nodes, {f"c{name}": _normal(1, rows, WIDTH), f"k{name}": np.array([rows, WIDTH], np.int64)}


@settings(max_examples=30, deadline=None)
@given(
    rows=st.tuples(*[st.integers(0, 2)] * 4).filter(any),
    patches=st.sampled_from([None, (1, LENGTH, WIDTH), (LENGTH, WIDTH), (WIDTH,), (1, 1, 1)]),
    positions=st.sampled_from([None, "all", (WIDTH,), (1, 1, 1)]),
    swapped=st.booleans(),
)
def test_the_same_numbers(rows, patches, positions, swapped) -> None:
    """Two tokens in front and two behind, some absent; positions of the patches alone, of all, or both."""
    used = [i for i, count in enumerate(rows) if count]
    made = [_repeated(str(i), rows[i]) for i in used]
    constants = {name: array for _, own in made for name, array in own.items()}
    data = "x"
    nodes = BATCH + "".join(text for text, _ in made)
    if patches is not None:
        data, constants["p"] = "a", _normal(*patches)
        nodes += "a = Add (x, p)  "
    joined = [f"e{i}" for i in used if i < 2] + [data] + [f"e{i}" for i in used if i >= 2]
    nodes += f"j = Concat <axis = {'-2' if swapped else '1'}> ({', '.join(joined)})  "
    if positions is not None:
        shape = (1, LENGTH + sum(rows), WIDTH) if positions == "all" else positions
        constants["q"] = _normal(*shape)
        nodes += f"b = Add ({'q, j' if swapped else 'j, q'})  "
    nodes += f"y = Neg ({'j' if positions is None else 'b'})"
    model = _model(nodes, **constants)
    assert check(pad_tokens, model) == 1
    assert operators(model) == ["Pad", "Add", "Neg"]
    assert pad_tokens(model) == 0


def test_tokens_that_come_one_after_the_other_are_one_addition() -> None:
    """DINOv2: class token and positions, then registers in front of the patches; here around everything."""
    first, one = _repeated("1", 1)
    second, two = _repeated("2", 2)
    nodes = BATCH + first + second + "j = Concat <axis = 1> (e1, x)  b = Add (j, p)  y = Concat <axis = 1> (b, e2)"
    model = _model(nodes, p=_normal(1, LENGTH + 1, WIDTH), **one, **two)
    assert check(pad_tokens, model) == 2
    assert operators(model) == ["Pad", "Add"]


def test_along_the_last_axis() -> None:
    """A sequence that holds its tokens as columns."""
    nodes = BATCH + "t = Concat <axis = 0> (s, k)  e = Expand (c, t)  j = Concat <axis = 2> (x, e)  y = Add (j, p)"
    constants = {"c": _normal(LENGTH, 1), "k": np.array([LENGTH, 1], np.int64), "p": _normal(1, LENGTH, WIDTH + 1)}
    model = _model(nodes, **constants)
    assert check(pad_tokens, model) == 1
    assert operators(model) == ["Pad", "Add"]


def test_a_token_of_a_fixed_batch() -> None:
    model = _model("y = Concat <axis = 1> (c, x)", batch="3", c=np.repeat(_normal(1, 1, WIDTH), 3, 0))
    assert [len(feed) for feed in feeds(model)] == [3, 3]
    assert check(pad_tokens, model) == 1
    assert operators(model) == ["Pad", "Add"]


def test_a_sum_that_others_read_stays() -> None:
    """The positions cannot move into the constant then, nor the sum in front behind the padding."""
    text, constants = _repeated("1", 1)
    nodes = BATCH + text + "a = Add (x, p)  j = Concat <axis = 1> (e1, a)  b = Add (j, q)  c = Sigmoid (j)  "
    nodes += "d = Mul (b, c)  m = ReduceMax <keepdims = 1> (a, one)  y = Mul (d, m)"
    model = _model(nodes, p=_normal(WIDTH), q=_normal(WIDTH), one=np.array([1], np.int64), **constants)
    assert check(pad_tokens, model) == 1
    assert operators(model).count("Add") == 3


def test_a_bias_stays_at_its_product() -> None:
    text, constants = _repeated("1", 1)
    nodes = BATCH + text + "m = MatMul (x, w)  a = Add (m, k)  y = Concat <axis = 1> (e1, a)"
    model = _model(nodes, w=_normal(WIDTH, WIDTH), k=_normal(WIDTH), **constants)
    assert check(pad_tokens, model) == 1
    assert operators(model) == ["MatMul", "Add", "Pad", "Add"]


@pytest.mark.parametrize(
    ("nodes", "constants", "batch"),
    [
        ("y = Concat <axis = 1> (c, x)", {"c": _normal(3, 1, WIDTH)}, "3"),
        ("n = Neg (x)  y = Concat <axis = 1> (n, x)", {}, "N"),
        ("y = Concat <axis = 0> (c, x)", {"c": _normal(1, LENGTH, WIDTH)}, "3"),
    ],
    ids=["rows of one image", "no token", "along the batch"],
)
def test_what_is_no_token_stays(nodes: str, constants: dict[str, np.ndarray], batch: str) -> None:
    model = _model(nodes, batch=batch, **constants)
    before = str(ir.to_proto(model))
    assert pad_tokens(model) == 0
    assert str(ir.to_proto(model)) == before


def test_images_stay() -> None:
    """Coordinates beside the channels of an image: a padded image and an addition would cost more than they save."""
    model = parse(
        "g (float[N,3,4,4] x) => (float y) { s = Shape <start = 0, end = 1> (x)  t = Concat <axis = 0> (s, k)  "
        "e = Expand (c, t)  y = Concat <axis = 1> (x, e) }",
        c=_normal(1, 2, 4, 4), k=np.array([2, 4, 4], np.int64),
    )  # fmt: skip
    infer_shapes(model)
    assert pad_tokens(model) == 0


def test_no_shape_is_asked_for_any_more() -> None:
    text, constants = _repeated("1", 1)
    model = _model(BATCH + text + "j = Concat <axis = 1> (e1, x)  y = Add (j, p)", p=_normal(1, 6, WIDTH), **constants)
    assert operators(prepare(model)) == ["Pad", "Add"]
