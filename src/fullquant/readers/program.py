"""One form for both of Paddle's program formats: operators with named inputs, outputs and attributes.

The names are those of the legacy format (`.pdmodel`): "conv2d" with "Input", "Filter" and "Output". The PIR reader
brings its operations into this form, so that one table of translations (`paddle_ops`) serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True)
class VariableRef:
    """An attribute whose value is held by a variable."""

    name: str


AttrValue: TypeAlias = "bool | int | float | str | np.dtype | VariableRef | Sequence[AttrValue] | None"


@dataclass(frozen=True)
class Variable:
    """What the file says of a variable. dims: None if it isn't a tensor; -1 marks a size known only at run time."""

    name: str
    dtype: np.dtype | None
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class PaddleOp:
    """One operator call. `type` is the legacy name; inputs and outputs map a parameter to its variables' names.

    control_flow: it runs a block of the program, which is not read.
    """

    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    namescope: str = ""
    control_flow: bool = False

    def first_output(self) -> str:
        """Name of the first output variable; "" for an operator without any. For error messages."""
        return next((name for names in self.outputs.values() for name in names), "")


@dataclass(frozen=True)
class Program:
    """A whole program, ready for translation.

    inputs and outputs are in the order of Paddle's feed and fetch columns. `parameters` are the persistable variables
    that the parameter file holds, in no particular order.
    """

    path: Path
    source_format: str
    ops: Sequence[PaddleOp]
    inputs: Sequence[Variable]
    outputs: Sequence[str]
    variables: Mapping[str, Variable]
    parameters: Sequence[Variable]
