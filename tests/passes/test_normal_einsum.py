"""Einsums as classifiers have them, by the oracle of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.normal_einsum import normal_einsum
from tests.graph.toy_models import check, operators, parse

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6, "c": 3, "o": 4, "n": 5, "w": 2}


def shape(term: str, batch: str) -> str:
    return ",".join("N" if letter == batch else str(SIZES[letter]) for letter in term)


def model(equation: str, batch: str = "b", terms: list[str] | None = None, seed: int = 0) -> ir.Model:
    """The einsum of the image x and constants, or of x and what is computed from x (where both have the batch)."""
    left, _, right = equation.replace(" ", "").partition("->")
    first, *others = terms or left.split(",")
    header = "".join(f", float[{shape(term, '')}] k{index}" for index, term in enumerate(others))
    names = "".join(f", k{index}" for index, _ in enumerate(others))
    made = parse(
        f"g (float[{shape(first, batch)}] x{header}) => (float[{shape(right.replace('...', 'bh'), batch)}] y) "
        f'{{ y = Einsum <equation = "{equation}"> (x{names}) }}',
        seed,
    )
    infer_shapes(made)
    return made


CLASSIFIERS = {
    "bnc,cd->bnd": ["MatMul"], "bnc,dc->bnd": ["Transpose", "MatMul"], "bij->bji": ["Transpose"],
    "bchw,oc->bohw": ["Transpose", "Transpose", "MatMul", "Transpose"], "bij->bi": ["ReduceSum"],
    "bchw->bwc": ["ReduceSum", "Transpose"],
}  # fmt: skip


@pytest.mark.parametrize("equation", CLASSIFIERS)
def test_products_with_constants(equation: str) -> None:
    made = model(equation)
    assert check(normal_einsum, made) == 1
    assert sorted(operators(made)) == sorted(CLASSIFIERS[equation])


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhij", "bihd,bjhd->bhij", "... i d, ... j d -> ... i j"])
def test_attention_with_an_open_batch(equation: str) -> None:
    terms = ["bhid", "bhjd"] if "." in equation else equation.replace(" ", "").partition("->")[0].split(",")
    k = parse(
        f"g (float[{shape(terms[0], 'b')}] x, float[{shape(terms[1], 'b').replace('N', '1')}] k) => (float[a,e,f,g] y) "
        f'{{ z = ReduceMean <keepdims = 1> (x, all)  v = Add(k, z)  y = Einsum <equation = "{equation}"> (x, v) }}',
        all=np.int64([1, 2, 3]),
    )  # fmt: skip
    infer_shapes(k)
    assert check(normal_einsum, k) == 1
    assert "Einsum" not in operators(k)
    assert "MatMul" in operators(k)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_equation_of_two_tensors_keeps_its_numbers(data: st.DataObject) -> None:
    letters = data.draw(st.permutations("bhijdc"))
    count = data.draw(st.integers(1, 4))
    first = data.draw(st.permutations(letters[:count]))
    second = data.draw(st.permutations(letters[data.draw(st.integers(0, count)) :][:3]))
    result = data.draw(st.permutations(sorted(set(first) | set(second))))
    result = result[: data.draw(st.integers(1, len(result)))]
    made = model(f"{''.join(first)},{''.join(second)}->{''.join(result)}", batch="", seed=count)
    check(normal_einsum, made)


@pytest.mark.parametrize("equation", ["bii->bi", "bij,bjd,bdc->bic", "bij,jd->bi"])
def test_what_is_kept(equation: str) -> None:
    count = equation.count(",") + 1
    second = "4,4" if equation.endswith("jd->bi") else "2,4,4"
    made = parse(
        f"g (float[2,4,4] x, float[{second}] v, float[2,4,4] w) => (float[a,e] y) "
        f'{{ y = Einsum <equation = "{equation}"> ({", ".join("xvw"[:count])}) }}'
    )
    infer_shapes(made)
    assert normal_einsum(made) == 0
    assert operators(made) == ["Einsum"]


def test_without_an_arrow_what_occurs_once_is_left_in_order_of_the_alphabet() -> None:
    made = parse('g (float[N,4,5] x, float[5,3] k) => (float[N,4,3] y) { y = Einsum <equation = "bij,jk"> (x, k) }')
    infer_shapes(made)
    assert check(normal_einsum, made) == 1
    assert operators(made) == ["MatMul"]
