"""A Paddle program in Paddle 3's own form (PIR, `*.json`), made from the legacy program that the Paddle writer builds.

The parameter file is the same for both forms: tensors in ascending order of their names. What differs:
- an operator has a fixed list of operands; numbers that may be computed (shapes, axes, bounds) are operands, made by
  `full` and `full_int_array` in front of it;
- an elementwise_add along axis 1 of a vector becomes a reshape to [1, C, 1, 1] and an add;
- lists of tensors are combined in front and split behind an operator;
- outputs that only training reads do not exist;
- a quantize_linear with its dequantize_linear is one fake_quantize_dequantize_moving_average_abs_max, and the
  dequantize_linear of an int8 constant is a cast and a fake_channel_wise_dequantize_max_abs or fake_dequantize_max_abs:
  the same formulas on the same parameters. PaddlePaddle 3.3.1 does not run the first two in this form (decision 0012).
The rows are in `pir_rows`. tests/writers/test_pir.py compares whole programs with what
`paddle.pir.translate_to_pir` makes of the legacy ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fullquant.errors import ExportError
from fullquant.formats.framework_pb2 import OpDesc
from fullquant.formats.paddle_types import DTYPE_OF_NUMBER, PIR_NAMES_OF_DTYPE
from fullquant.writers.paddle_builder import PaddleProgram
from fullquant.writers.pir_rows import ROWS, Combined, Ints, IntsOrTensor, Json, Operand, Row, Scalar

_CPU = {"#": "1.a_place", "D": [1, 0, ""]}
_UNDEFINED_PLACE = {"#": "1.a_place", "D": [0, 0, ""]}
# PaddlePaddle 3.3 writes 4 and reads up to it.
_VERSION = 4


def pir_json(program: PaddleProgram) -> bytes:
    """The `.json` file of a program. Raises ExportError for an operator that has no row."""
    translation = _Translation(program)
    for name in sorted(program.parameters):
        translation.parameter(name)
    for op in program.desc.blocks[0].ops:
        translation.operator(op)
    block = {"#": "block_0", "args": [], "ops": translation.ops}
    document = {
        "base_code": {"magic": "pir", "trainable": False, "version": _VERSION},
        "program": {"regions": [{"#": "region_0", "blocks": [block]}]},
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("utf-8")


class _Translation:
    """State of the walk over the legacy operators: the number of each variable's value, and the operations so far."""

    def __init__(self, program: PaddleProgram) -> None:
        self.ops: list[Json] = []
        self._types = {v.name: v.type.dense_tensor.tensor for v in program.desc.blocks[0].vars}
        self._parameters = program.parameters
        self._values: dict[str, int] = {}
        self._quantized: dict[str, str] = {}  # output of a quantize_linear -> its input
        self._count = 0

    def parameter(self, name: str) -> None:
        """Declares a persistable variable."""
        array = self._parameters[name]
        kind = _tensor(PIR_NAMES_OF_DTYPE[array.dtype][0], array.shape)
        result = self._result(name, kind)
        self.ops.append({"#": "p", "A": [0, 1, 0, name], "DA": [], "O": result, "OA": [1, 0, 1], "QA": []})

    def operator(self, op: OpDesc) -> None:
        """Writes one legacy operator and what it needs around it."""
        inputs, outputs = _bound(op.inputs), _bound(op.outputs)
        if op.type == "feed":
            self._feed(outputs["Out"][0])
            return
        if op.type == "fetch":
            self._fetch(inputs["X"][0], _attributes(op)["col"].i)
            return
        if op.type in ("quantize_linear", "dequantize_linear"):
            self._quantizer(op.type, inputs, outputs["Y"][0], _attributes(op))
            return
        row = ROWS.get(op.type)
        if row is None:
            raise ExportError(
                f"the Paddle 3 program has no row for operator {op.type!r} (output {_first(outputs)!r}); add it to "
                "writers.pir.ROWS"
            )
        attributes = _attributes(op)
        operands = [self._operand(row, operand, inputs, attributes) for operand in row.operands]
        if op.type == "elementwise_add" and attributes["axis"].i == 1:
            operands[1] = self._along_channels(inputs["X"][0], inputs["Y"][0])
        written = [(name, value) for name, value in row.fixed.items()]
        written += [(ours, _KINDS[kind](attributes[legacy])) for ours, kind, legacy in row.attributes]
        if row.several:
            self._split(row, operands, written, outputs["Out"])
            return
        results = [
            self._absent() if name is None or name not in outputs else self._variable(outputs[name][0])
            for name in row.outputs
        ]
        name = "triu" if op.type == "tril_triu" and not attributes["lower"].b else row.name
        self._add(f"1.{name}", operands, results, written)

    # --- operands ------------------------------------------------------------------------------------------------

    def _operand(
        self, row: Row, operand: Operand, inputs: Mapping[str, Sequence[str]], attributes: Mapping[str, OpDesc.Attr]
    ) -> int:
        """The number of an operand's value, 0 for none."""
        if isinstance(operand, str):
            return self._values[inputs[operand][0]] if inputs.get(operand) else 0
        if isinstance(operand, IntsOrTensor) and inputs.get(operand.parameter):
            return self._values[inputs[operand.parameter][0]]
        if isinstance(operand, Ints | IntsOrTensor):
            return self._ints(attributes[operand.attribute].ints)
        if isinstance(operand, Scalar):
            attribute = attributes[operand.attribute]
            return self._scalar(attribute.i if operand.dtype == "int32" else attribute.f, operand.dtype)
        if isinstance(operand, Combined):
            return self._combine(inputs[operand.parameter])
        return 0

    def _ints(self, numbers: Sequence[int]) -> int:
        attributes = [("value", _array("i64", numbers)), ("dtype", _of("1.a_dtype", "int64")), ("place", _CPU)]
        return self._constant("1.full_int_array", _tensor("t_i64", [len(numbers)]), attributes)

    def _scalar(self, number: float, dtype: str) -> int:
        attributes = [
            ("shape", _of("1.a_intarray", [1])), ("value", _of("0.a_f64", float(number))),
            ("dtype", _of("1.a_dtype", dtype)), ("place", _CPU),
        ]  # fmt: skip
        return self._constant("1.full", _tensor("t_i32" if dtype == "int32" else "t_f32", [1]), attributes)

    def _constant(self, kind: str, type_: Json, attributes: list[tuple[str, Json]]) -> int:
        result = self._result(None, type_)
        self._add(kind, [], [result], attributes, constant=True)
        return int(result["%"])

    def _combine(self, names: Sequence[str]) -> int:
        result = self._result(None, _of("0.t_vec", [self._type(name) for name in names]))
        operands = _operands([self._values[name] for name in names])
        self.ops.append({"#": "0.combine", "A": [], "I": operands, "O": [result], "OA": []})
        return int(result["%"])

    def _along_channels(self, data: str, vector: str) -> int:
        """The vector [C] as [1, C, 1, 1]; itself beside data of two axes."""
        rank = len(self._types[data].dims)
        if rank == 2:
            return self._values[vector]
        (channels,) = self._parameters[vector].shape
        shape = [1, channels, *[1] * (rank - 2)]
        operands = [self._values[vector], self._ints(shape)]
        result = self._result(None, _tensor("t_f32", shape))
        self._add("1.reshape", operands, [result], [], constant=True)
        return int(result["%"])

    # --- quantizers ----------------------------------------------------------------------------------------------

    def _quantizer(
        self, kind: str, inputs: Mapping[str, Sequence[str]], target: str, attributes: Mapping[str, OpDesc.Attr]
    ) -> None:
        """quantize_linear and dequantize_linear behind each other are one operator, behind a constant two."""
        source, scale = inputs["X"][0], inputs["Scale"][0]
        if kind == "quantize_linear":
            self._quantized[target] = source
        elif source in self._quantized:
            self._rounding(self._quantized[source], scale, target, attributes["bit_length"].i)
        else:
            self._constant_weight(source, scale, target, attributes["quant_axis"].i)

    def _rounding(self, source: str, scale: str, target: str, bits: int) -> None:
        written = [
            ("moving_rate", _of("0.a_f32", 0.9)), ("bit_length", _of("0.a_i32", bits)),
            ("is_test", _of("0.a_bool", True)), ("round_type", _of("0.a_i32", 0)),
        ]  # fmt: skip
        results = [self._variable(target), self._result(None, self._type(scale)), self._absent(), self._absent()]
        operands = [self._values[source], self._values[scale], 0, 0]
        self._add("1.fake_quantize_dequantize_moving_average_abs_max_", operands, results, written)

    def _constant_weight(self, source: str, scale: str, target: str, axis: int) -> None:
        floats = self._result(None, _tensor("t_f32", self._parameters[source].shape))
        self._add("1.cast", [self._values[source]], [floats], [("dtype", _of("1.a_dtype", "float32"))])
        if axis < 0:
            limit = ("max_range", _of("0.a_f32", 127.0))
            operands = [int(floats["%"]), self._values[scale]]
            self._add("1.fake_dequantize_max_abs", operands, [self._variable(target)], [limit])
            return
        written = [
            ("quant_bits", _array("i32", [8])), ("quant_axis", _of("0.a_i32", axis)),
            ("x_num_col_dims", _of("0.a_i32", 1)),
        ]  # fmt: skip
        operands = [int(floats["%"]), self._combine([scale])]
        self._add("1.fake_channel_wise_dequantize_max_abs", operands, [self._variable(target)], written)

    # --- operations ----------------------------------------------------------------------------------------------

    def _feed(self, name: str) -> None:
        dtype = PIR_NAMES_OF_DTYPE[DTYPE_OF_NUMBER[int(self._types[name].data_type)]][1]
        attributes = [
            ("name", _of("0.a_str", name)), ("shape", _of("1.a_intarray", list(self._types[name].dims))),
            ("dtype", _of("1.a_dtype", dtype)), ("place", _UNDEFINED_PLACE),
        ]  # fmt: skip
        self._add("1.data", [], [self._variable(name)], attributes)

    def _fetch(self, name: str, column: int) -> None:
        attributes = [("name", _of("0.a_str", name)), ("col", _of("0.a_i32", column))]
        result = self._result(None, self._type(name))
        self._add("1.fetch", [self._values[name]], [result], attributes, persistable=True)

    def _split(self, row: Row, operands: list[int], attributes: list[tuple[str, Json]], names: Sequence[str]) -> None:
        parts = self._result(None, _of("0.t_vec", [self._type(name) for name in names]))
        self._add(f"1.{row.name}", operands, [parts], attributes)
        for index, name in enumerate(names):
            written = ("index", _of("0.a_i32", index))
            self._add("0.slice", [int(parts["%"])], [self._variable(name)], [written])

    def _add(
        self,
        kind: str,
        operands: Sequence[int],
        results: Sequence[Json],
        attributes: Sequence[tuple[str, Json]],
        *,
        constant: bool = False,
        persistable: bool = False,
    ) -> None:
        """Appends an operation. constant: it stops the gradient, as what is made of constants does."""
        about = [] if constant else [("persistable", [persistable] * len(results))]
        about.append(("stop_gradient", [constant] * len(results)))
        self.ops.append({
            "#": kind,
            "A": [{"AT": value, "N": name} for name, value in attributes],
            "I": _operands(operands),
            "O": list(results),
            "OA": [{"AT": _array("bool", flags), "N": name} for name, flags in about],
        })  # fmt: skip

    # --- values --------------------------------------------------------------------------------------------------

    def _variable(self, name: str) -> Json:
        return self._result(name, self._type(name))

    def _result(self, name: str | None, type_: Json) -> Json:
        """A new value, which is what the variable stands for from now on."""
        self._count += 1
        if name is not None:
            self._values[name] = self._count
        return {"%": self._count, "TT": type_}

    def _absent(self) -> Json:
        return self._result(None, {"#": "NULL"})

    def _type(self, name: str) -> Json:
        tensor = self._types[name]
        return _tensor(PIR_NAMES_OF_DTYPE[DTYPE_OF_NUMBER[int(tensor.data_type)]][0], tensor.dims)


def _tensor(element: str, dims: Sequence[int]) -> Json:
    return {"#": "0.t_dtensor", "D": [{"#": f"0.{element}"}, [int(dim) for dim in dims], "NCHW", [], 0]}


def _of(kind: str, content: Any) -> Json:
    return {"#": kind, "D": content}


def _array(kind: str, items: Sequence[Any]) -> Json:
    return _of("0.a_array", [_of(f"0.a_{kind}", item) for item in items])


_KINDS: Mapping[str, Callable[[OpDesc.Attr], Json]] = {
    "i32": lambda a: _of("0.a_i32", a.i),
    "f32": lambda a: _of("0.a_f32", a.f),
    "f64": lambda a: _of("0.a_f64", a.f),
    "bool": lambda a: _of("0.a_bool", a.b),
    "str": lambda a: _of("0.a_str", a.s),
    "dtype": lambda a: _of("1.a_dtype", PIR_NAMES_OF_DTYPE[DTYPE_OF_NUMBER[a.i]][1]),
    "place": lambda a: _UNDEFINED_PLACE,
    "f64s": lambda a: _array("f64", a.floats),
    "i32s": lambda a: _array("i32", a.ints),
    "i64s": lambda a: _array("i64", a.ints),
}


def _operands(numbers: Sequence[int]) -> list[Json]:
    return [{"%": number} for number in numbers]


def _bound(variables: Any) -> dict[str, list[str]]:
    return {variable.parameter: list(variable.arguments) for variable in variables if variable.arguments}


def _attributes(op: OpDesc) -> dict[str, OpDesc.Attr]:
    return {attribute.name: attribute for attribute in op.attrs}


def _first(outputs: Mapping[str, Sequence[str]]) -> str:
    return next((name for names in outputs.values() for name in names), "")
