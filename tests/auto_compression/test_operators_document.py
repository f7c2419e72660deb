"""docs/operators.md is made from the code, and what it says of a rule is what the rule does."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fullquant.auto_compression import operators_document as document
from fullquant.readers.paddle_ops.context import OpContext
from fullquant.readers.paddle_ops.contract import contract_of
from fullquant.readers.paddle_ops.table import GROUPS, ROWS
from fullquant.runtime.torch_ops import BUILDERS
from fullquant.writers import paddle_ops
from fullquant.writers.pir_rows import ROWS as PIR_ROWS
from tests.writers.test_paddle_ops import CASES as WRITER_CASES
from tests.writers.test_paddle_ops import build_paddle

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operators.md"


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    again = "run: python -m fullquant.auto_compression.operators_document docs/operators.md"
    assert document.replaced(text) == text, again


def test_the_check_of_the_document_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "| `relu` | `relu` | Relu |" in text
    assert document.replaced(text.replace("| `relu` | `relu` | Relu |", "| `relu` | `relu` | Elu |")) == text
    with pytest.raises(ValueError, match="lacks the marks"):
        document.replaced("# Operators")


def test_every_row_is_in_a_group_and_says_what_it_does() -> None:
    assert sum(map(len, GROUPS.values())) == len(ROWS)
    for row in ROWS:
        assert contract_of(row.rule).meaning, f"the rule of {row.types[0]} has no docstring"


def test_every_operator_that_the_readers_make_is_simulated_and_written() -> None:
    """What is missing is a line in BUILDERS (runtime.torch_*) or RULES (writers.paddle_*)."""
    made = set(document.produced()) - document.QUANTIZERS - document.FOLDED - document.REPLACED
    assert made - set(BUILDERS) == set()
    assert made - set(paddle_ops.supported_operators()) == set()


def test_every_operator_that_the_paddle_writer_writes_has_a_paddle_3_row() -> None:
    """The cases of tests/writers cover every rule (test_every_rule_has_a_case there)."""
    written = {
        op.type for case in WRITER_CASES.values() for op in build_paddle(case.model(), None, {}).desc.blocks[0].ops
    }
    assert written - {"feed", "fetch"} - set(PIR_ROWS) == set()


# --- the contract ----------------------------------------------------------------------------------------------------


def _branches(c: OpContext) -> object:
    """Says what it means.

    Not this.
    """
    kind, scale = ("Relu", 1) if c.flag("first") else ("Elu", 2)
    for name in ("a", "b"):
        c.number(f"{name}_scale", scale)
    if c.text("layout") == "NHWC":
        raise c.unsupported(f"layout {scale} is not read", "export again")
    return _rest(c, kind, "Neg")


def _rest(c: OpContext, kind: str, other: str = "Abs") -> object:
    (size,) = c.static_dims(c.input(), 1)
    x = c.node(kind, c.reshape(c.input(), [size]))
    return c.node("Mul" if c.integer("axis", 0) else other, x)


def test_the_contract_follows_names_branches_loops_and_calls() -> None:
    found = contract_of(_branches)
    assert found.meaning == "Says what it means."
    assert found.attributes == ["first", "a_scale", "b_scale", "layout", "axis"]
    assert found.refusals == ["layout … is not read"]
    assert found.needs == ["needs known sizes"]
    assert set(found.onnx) >= {"Reshape", "Mul", "Neg"}
    assert "Abs" not in found.onnx  # the default is overridden by the call


def test_a_rule_of_a_factory_knows_what_it_was_made_with() -> None:
    (row,) = (row for row in ROWS if row.types == ("log_softmax",))
    assert inspect.isfunction(row.rule)
    assert contract_of(row.rule).onnx == ["LogSoftmax"]
    with pytest.raises(TypeError, match="no plain function"):
        contract_of(len)
