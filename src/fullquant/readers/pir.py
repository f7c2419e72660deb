"""Reads Paddle 3's `.json` programs into the common form: PIR operations under their legacy names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fullquant.errors import ModelError
from fullquant.formats.pir_json import PARAMETER, Attribute, PirOp, PirProgram, PirType, load_pir
from fullquant.readers.paddle_ops import PIR, Number, Operator
from fullquant.readers.program import AttrValue, PaddleOp, Program, Variable
from fullquant.readers.wrong_files import refuse_misnamed

_INPUTS = ("pd_op.data", "pd_op.feed")
_OUTPUTS = ("pd_op.fetch", "builtin.shadow_output")
_CONSTANTS = ("pd_op.full", "pd_op.full_int_array", "pd_op.assign_value", "pd_op.assign_value_")


class _PirReader:
    """State of the walk over the operations: what each value id stands for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[int, tuple[str, ...]] = {}  # value id -> variables (several for a vector)
        self.constants: dict[int, Attribute] = {}
        self.variables: dict[str, Variable] = {}
        self.parameters: list[Variable] = []
        self.inputs: list[tuple[int, Variable]] = []
        self.outputs: list[tuple[int, str]] = []
        self.ops: list[PaddleOp] = []
        self.count: Counter[str] = Counter()

    def read(self, program: PirProgram) -> Program:
        for op in program.ops:
            self._op(op)
        return Program(
            path=self.path,
            source_format="pir",
            ops=self.ops,
            inputs=[variable for _, variable in sorted(self.inputs, key=lambda item: item[0])],
            outputs=[name for _, name in sorted(self.outputs)],
            variables=self.variables,
            parameters=self.parameters,
        )

    def _op(self, op: PirOp) -> None:
        if op.name == PARAMETER:
            self.parameters.append(self._declare(op.results[0].id, op.parameter_name, op.results[0].type))
        elif op.name in _INPUTS:
            name = str(op.attributes.get("name"))
            variable = self._declare(op.results[0].id, name, op.results[0].type)
            self.inputs.append((_column(op, len(self.inputs)), variable))
        elif op.name in _OUTPUTS:
            (name,) = self._variables(op, op.operands[0])
            self.outputs.append((_column(op, len(self.outputs)), name))
        elif op.name == "builtin.combine":
            parts = tuple(name for operand in op.operands for name in self._variables(op, operand))
            self.names[op.results[0].id] = parts
        elif op.name == "builtin.split":
            for result, name in zip(op.results, self._variables(op, op.operands[0]), strict=True):
                self.names[result.id] = (name,)
        elif op.name == "builtin.slice":
            index = op.attributes.get("index")
            self.names[op.results[0].id] = (
                self._variables(op, op.operands[0])[index if isinstance(index, int) else 0],
            )
        else:
            self._operator(op)

    def _operator(self, op: PirOp) -> None:
        row = PIR.get(op.name) or PIR.get(op.name.removesuffix("_"))  # a trailing "_" marks the in-place form
        if row is None or op.has_regions:
            self._unknown(op)
            return
        kind = row.types[0]
        base = f"{kind}_{self.count[kind]}"
        self.count[kind] += 1
        attrs = {row.renames.get(name, name): _plain(value) for name, value in op.attributes.items()}
        inputs = self._operands(op, row, attrs)
        outputs = {name: self._results(op, index, base) for index, name in enumerate(row.outputs)}
        scope = attrs.get("struct_name")
        namescope = scope if isinstance(scope, str) else ""
        self.ops.append(PaddleOp(kind, inputs, outputs, attrs, namescope))
        if op.name in _CONSTANTS:
            self._note_constant(op)

    def _unknown(self, op: PirOp) -> None:
        """An operator that has no row, or runs blocks; who translates the program refuses all of them at once."""
        names: tuple[str, ...] = ()
        for result in op.results:
            parts = result.type.elements
            stems = (f"%{result.id}",) if parts is None else tuple(f"%{result.id}.{i}" for i in range(len(parts)))
            self.names[result.id] = stems
            names += stems
        read = tuple(name for operand in op.operands for name in self.names.get(operand, ()))
        self.ops.append(PaddleOp(op.name, {"X": read}, {"Out": names}, control_flow=op.has_regions))

    def _operands(self, op: PirOp, row: Operator, attrs: dict[str, AttrValue]) -> dict[str, tuple[str, ...]]:
        """The operands under their legacy names; constant ones that legacy programs hold as attributes join `attrs`."""
        inputs: dict[str, tuple[str, ...]] = {}
        for operand, slot in zip(op.operands, row.operands, strict=False):
            if operand == 0:
                continue
            if isinstance(slot, str):
                inputs[slot] = self._variables(op, operand)
            elif operand in self.constants:
                attrs[slot.attr] = _plain(self.constants[operand])
            else:
                names = self._variables(op, operand)
                inputs[_slot_input(slot, len(names))] = names
        return inputs

    def _results(self, op: PirOp, index: int, base: str) -> tuple[str, ...]:
        if index >= len(op.results) or op.results[index].id == 0:
            return ()
        result = op.results[index]
        stem = f"{base}.tmp_{index}"
        if result.type.elements is None:
            return (self._declare(result.id, stem, result.type).name,)
        names = tuple(f"{stem}_{part}" for part in range(len(result.type.elements)))
        for name, element in zip(names, result.type.elements, strict=True):
            self.variables[name] = _variable(name, element)
        self.names[result.id] = names
        return names

    def _note_constant(self, op: PirOp) -> None:
        """Remembers small constants, so that operators can take them as attributes."""
        value = op.attributes.get("values", op.attributes.get("value"))
        if op.name == "pd_op.full":
            shape = op.attributes.get("shape")
            sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, list) else []
            if sizes not in ([], [1]):
                return
        self.constants[op.results[0].id] = value

    def _declare(self, value_id: int, name: str, kind: PirType) -> Variable:
        variable = _variable(name, kind)
        self.variables[name] = variable
        self.names[value_id] = (name,)
        return variable

    def _variables(self, op: PirOp, value_id: int) -> tuple[str, ...]:
        names = self.names.get(value_id)
        if names is None:
            raise ModelError(f"{self._where(op)} reads value {value_id}, which nothing writes; export the model again")
        return names

    def _where(self, op: PirOp) -> str:
        result = op.results[0].id if op.results else 0
        return f"{self.path}: operator {op.name!r} (output %{result})"


def _slot_input(slot: Number, count: int) -> str:
    if count > 1:
        return slot.parts or slot.tensor
    return slot.tensor or slot.parts


def _variable(name: str, kind: PirType) -> Variable:
    return Variable(name, kind.dtype, kind.dims if kind.dtype is not None else None)


def _column(op: PirOp, default: int) -> int:
    column = op.attributes.get("col")
    return column if isinstance(column, int) and not isinstance(column, bool) else default


def _plain(value: Attribute) -> AttrValue:
    if value is None or isinstance(value, bool | int | float | str | np.dtype):
        return value
    items: Sequence[Attribute] = value
    return [_plain(item) for item in items]


def load_pir_program(path: Path) -> Program:
    """Reads a Paddle 3 `.json` program. Raises ModelError, naming file and operator."""
    try:
        reader, program = _PirReader(path), load_pir(path)
    except ModelError:
        if path.is_file():
            refuse_misnamed(path)
        raise
    try:
        return reader.read(program)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: the PIR program is malformed ({error}); export it again") from error
