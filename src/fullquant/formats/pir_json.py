"""Typed access to Paddle 3's `.json` programs (PIR, "Paddle intermediate representation").

The file is `{"base_code": {"magic": "pir", "version": v, ...}, "program": {"regions": [...]}}`. A region holds blocks,
a block holds operations. Keys are short: `#` name, `%` value id, `I` operands, `O` results, `A` attributes (`N` name,
`AT` value), `TT` type, `D` content. Dialects are numbers: `0` builtin, `1` pd_op, `2` control flow, `3` custom,
`4` distributed. An operation called `p` is a parameter; its attributes are a plain list that ends in the name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fullquant.errors import ModelError
from fullquant.formats.paddle_types import DTYPE_OF_PIR_NAME

Attribute: TypeAlias = "bool | int | float | str | np.dtype | list[Attribute] | None"

PARAMETER = "builtin.parameter"

_DIALECTS = {"0": "builtin", "1": "pd_op", "2": "cf", "3": "custom_op", "4": "dist"}
_NEWEST_VERSION = 4


@dataclass(frozen=True)
class PirType:
    """Type of a value: a dense tensor (dtype, dims with -1 for unknown) or a vector of such (elements)."""

    dtype: np.dtype | None = None
    dims: tuple[int, ...] = ()
    elements: tuple[PirType, ...] | None = None


@dataclass(frozen=True)
class PirValue:
    """A result: its number in the file (0: not there) and its type."""

    id: int
    type: PirType


@dataclass(frozen=True)
class PirOp:
    """One operation. `name` has the dialect spelled out ("pd_op.conv2d"); operands are value ids, 0 for none."""

    name: str
    operands: tuple[int, ...]
    results: tuple[PirValue, ...]
    attributes: Mapping[str, Attribute]
    has_regions: bool = False

    @property
    def parameter_name(self) -> str:
        """Name of the parameter that a `builtin.parameter` stands for."""
        return str(self.attributes["parameter_name"])


@dataclass(frozen=True)
class PirProgram:
    """The operations of the one top-level block, in order of execution."""

    version: int
    ops: tuple[PirOp, ...]


def is_pir_file(path: Path) -> bool:
    """Whether a file is a Paddle 3 program: many are called .json; a program says so in its first characters."""
    with path.open("rb") as stream:
        return b'"pir"' in stream.read(4096)


def load_pir(path: Path) -> PirProgram:
    """Reads a Paddle 3 `.json` program. Raises ModelError where the file is not one, or is newer than known."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error}); the file is damaged, export it again") from None
    base = document.get("base_code") if isinstance(document, dict) else None
    if not isinstance(base, dict) or base.get("magic") != "pir":
        raise ModelError(
            f"{path}: is JSON but not a Paddle 3 program (no base_code with magic 'pir'); "
            "give the file that paddle.jit.save wrote"
        )
    version = base.get("version")
    if not isinstance(version, int) or not 0 <= version <= _NEWEST_VERSION:
        raise ModelError(
            f"{path}: PIR version {version!r} is not known (up to {_NEWEST_VERSION} is); "
            "export the model with PaddlePaddle 3.0 to 3.3"
        )
    try:
        ops = _top_block(document["program"])
        return PirProgram(version, tuple(_read_op(op) for op in ops))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}: the PIR program is malformed ({type(error).__name__}: {error}); export it again"
        ) from None


def _top_block(program: Mapping[str, Any]) -> Sequence[Any]:
    regions = program["regions"]
    if len(regions) != 1 or len(regions[0]["blocks"]) != 1:
        raise ValueError("more than one region or block at the top")
    ops: Sequence[Any] = regions[0]["blocks"][0]["ops"]
    return ops


def _read_op(op: Mapping[str, Any]) -> PirOp:
    if op["#"] == "p":
        value = _read_value(op["O"])
        return PirOp(PARAMETER, (), (value,), {"parameter_name": str(op["A"][-1])})
    dialect, _, name = str(op["#"]).partition(".")
    # struct_name, the layer that an operation came from, is in "A" for some versions and in "QA" for others
    attributes = {str(a["N"]): _read_attribute(a["AT"]) for a in [*op.get("A", []), *_named(op.get("QA", []))]}
    return PirOp(
        name=f"{_DIALECTS.get(dialect, dialect)}.{name}",
        operands=tuple(int(operand["%"]) for operand in op.get("I", [])),
        results=tuple(_read_value(result) for result in op.get("O", [])),
        attributes=attributes,
        has_regions=bool(op.get("regions")),
    )


def _named(attributes: Sequence[Any]) -> list[Any]:
    return [a for a in attributes if isinstance(a, dict) and "N" in a and "AT" in a]


def _read_value(value: Mapping[str, Any]) -> PirValue:
    return PirValue(int(value["%"]), _read_type(value.get("TT", {"#": "NULL"})))


def _read_type(node: Mapping[str, Any]) -> PirType:
    kind = str(node["#"]).rpartition(".")[2]
    if kind == "t_dtensor":
        element, dims = node["D"][0], node["D"][1]
        dtype = DTYPE_OF_PIR_NAME.get(str(element["#"]).rpartition(".")[2])
        return PirType(dtype, tuple(_int64(dim) for dim in dims))
    if kind == "t_vec":
        return PirType(elements=tuple(_read_type(element) for element in node["D"]))
    return PirType()


def _int64(content: Any) -> int:
    """An integer of the format; JSON has no limit, Paddle has."""
    number = int(content)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{number} is no 64-bit integer")
    return number


def _read_attribute(node: Mapping[str, Any]) -> Attribute:
    """Plain Python value of an attribute; element types become NumPy dtypes, unknown kinds None."""
    kind = str(node["#"]).rpartition(".")[2]
    content: Any = node.get("D")
    if kind == "a_bool":
        return bool(content)
    if kind in ("a_i32", "a_i64", "a_index"):
        return _int64(content)
    if kind in ("a_f32", "a_f64"):
        return float(content)  # infinities may stand there as strings; float() reads them
    if kind in ("a_str", "a_tensorname", "a_layout"):
        return str(content)
    if kind == "a_array":
        return [_read_attribute(element) for element in content]
    if kind == "a_intarray":
        return [_int64(element) for element in content]
    if kind == "a_dtype":
        return DTYPE_OF_PIR_NAME.get(str(content))
    if kind == "a_scalar":
        value = content[1]
        return value if isinstance(value, bool | int | float) else float(value)
    return None
