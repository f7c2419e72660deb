"""What nothing reads goes, to the last initializer."""

from __future__ import annotations

from fullquant.passes.remove_unused import remove_unused
from tests.graph.toy_models import check, operators, parse


def test_dead_branches_and_their_weights() -> None:
    model = parse(
        "g (float[N,3] x, float[3] w, float[3] v) => (float[N,3] y) { a = Mul(x, v)  b = Add(a, v)  y = Add(x, w) }"
    )
    assert check(remove_unused, model) == 3
    assert operators(model) == ["Add"]
    assert list(model.graph.initializers) == ["w"]


def test_a_node_with_one_output_in_use_stays() -> None:
    model = parse("g (float[N,4] x) => (float y) { a, y = Split <axis = 1, num_outputs = 2> (x) }")
    assert check(remove_unused, model) == 0


def test_an_unused_input_stays() -> None:
    model = parse("g (float[N,4] x, float[4] w) => (float y) { y = Relu(w) }")
    assert remove_unused(model) == 0
    assert model.graph.inputs[0].name == "x"
