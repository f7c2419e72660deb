"""What a rule found in a written file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One fault.

    rule: the rule's name, such as "missing-scale". variable: the variable, or tensor, that is wrong. operator: the
    operator that reads or writes it, its kind in front. message: what is wrong.
    """

    rule: str
    variable: str
    operator: str
    message: str

    def __post_init__(self) -> None:
        if not (self.rule and self.variable and self.message):
            raise ValueError("a finding has a rule, a variable and a message")

    def __str__(self) -> str:
        where = f" ({self.operator})" if self.operator else ""
        return f"{self.rule}: {self.variable!r}{where}: {self.message}"
