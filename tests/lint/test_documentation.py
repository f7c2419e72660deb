"""docs/lint.md names every rule, and every rule has a damaged file that it fires on."""

from __future__ import annotations

import re
from pathlib import Path

from tests.lint import test_onnx, test_paddle

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")


def names_in(*files: str) -> set[str]:
    """The rules that the sources can report: the first argument of what makes a finding."""
    texts = [(ROOT / "src" / "fullquant" / "lint" / file).read_text(encoding="utf-8") for file in files]
    return {name for text in texts for name in re.findall(r'\b_?(?:of|at)\(\s*"([a-z0-9-]+)"', text)}


def documented(heading: str) -> set[str]:
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`([a-z0-9-]+)`", row)}


def test_rules_for_paddle_files() -> None:
    rules = names_in("paddle_operators.py", "paddle_tensors.py")
    assert len(rules) > 15
    assert documented("Paddle files") == rules
    assert {rule for table in (test_paddle.NEWER, test_paddle.OLDER) for rule, _ in table.values()} == rules


def test_rules_for_onnx_files() -> None:
    rules = names_in("onnx_rules.py")
    assert len(rules) > 9
    assert documented("ONNX QDQ files") == rules
    assert {rule for rule, _ in test_onnx.DAMAGES.values()} == rules
