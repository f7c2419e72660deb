"""What a translation rule sees: one Paddle operator, typed access to it, and the ONNX nodes it may emit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError, UnsupportedOperatorError
from fullquant.formats.paddle_types import DTYPE_OF_NUMBER
from fullquant.graph.shape_values import shape_elements
from fullquant.readers.graph_builder import Array, GraphBuilder, NodeAttr
from fullquant.readers.halves import HALVES
from fullquant.readers.program import AttrValue, PaddleOp, VariableRef
from fullquant.readers.refusals import OTHER_WAY


class OpContext:
    """One operator of the program during its translation. Names of inputs and attributes are the legacy ones."""

    def __init__(self, builder: GraphBuilder, op: PaddleOp) -> None:
        self._builder = builder
        self.op = op

    # -- errors -------------------------------------------------------------------------------------------------

    def unsupported(self, what: str, remedy: str = OTHER_WAY) -> UnsupportedOperatorError:
        """The error for what has no translation, naming file, operator and output."""
        return UnsupportedOperatorError(f"{self._builder.where()}: {what}; {remedy}")

    def malformed(self, what: str) -> ModelError:
        """The error for what contradicts itself, naming file, operator and output."""
        return ModelError(f"{self._builder.where()}: {what}; the program is damaged, export it again")

    # -- inputs -------------------------------------------------------------------------------------------------

    def has(self, parameter: str) -> bool:
        """True if a variable is bound to the input."""
        return bool(self.op.inputs.get(parameter))

    def inputs(self, parameter: str) -> list[ir.Value]:
        """The values of an input that takes several variables."""
        return [self._builder.value(name) for name in self.op.inputs.get(parameter, ())]

    def input(self, parameter: str = "X") -> ir.Value:
        """The value of an input that must be there."""
        names = self.op.inputs.get(parameter, ())
        if len(names) != 1:
            raise self.malformed(f"input {parameter!r} has {len(names)} variables instead of 1")
        return self._builder.value(names[0])

    def optional(self, parameter: str) -> ir.Value | None:
        """The value of an input that may be left out."""
        return self.input(parameter) if self.has(parameter) else None

    def constant(self, parameter: str) -> Array | None:
        """The content of an input, where it is a parameter or otherwise known before the model runs."""
        names = self.op.inputs.get(parameter, ())
        return self._builder.constant(names[0]) if len(names) == 1 else None

    def required_constant(self, parameter: str) -> Array:
        """The content of an input that must be known before the model runs."""
        array = self.constant(parameter)
        if array is None:
            raise self.unsupported(f"input {parameter!r} is computed by the model, a constant is needed")
        return array

    def constants(self, parameter: str) -> list[Array]:
        """The contents of an input that takes several variables; all must be known before the model runs."""
        arrays = [self._builder.constant(name) for name in self.op.inputs.get(parameter, ())]
        known = [array for array in arrays if array is not None]
        if len(known) != len(arrays):
            raise self.unsupported(f"input {parameter!r} is computed by the model, constants are needed")
        return known

    # -- attributes ---------------------------------------------------------------------------------------------

    def attr(self, name: str) -> AttrValue:
        """The attribute as the file has it; None if absent. A variable that holds it must be constant."""
        value = self.op.attrs.get(name)
        if isinstance(value, VariableRef):
            return self._referred(name, value)
        if isinstance(value, list) and any(isinstance(item, VariableRef) for item in value):
            return [self._referred(name, item) if isinstance(item, VariableRef) else item for item in value]
        return value

    def _referred(self, name: str, ref: VariableRef) -> AttrValue:
        array = self._builder.constant(ref.name)
        if array is None:
            raise self.unsupported(f"attribute {name!r} is computed by the model (variable {ref.name!r})")
        items: list[AttrValue] = array.ravel().tolist()
        return items[0] if len(items) == 1 else items

    def _single(self, name: str) -> bool | int | float | str | None:
        value = self.attr(name)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise self.malformed(f"attribute {name!r} is {value!r}, one value is needed")

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self._single(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        value = self._single(name)
        return default if value is None else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean attribute."""
        value = self._single(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        value = self._single(name)
        return default if value is None else str(value)

    def numbers(self, name: str) -> list[float]:
        """A list of numbers; a single one counts as a list of length 1, an absent one as empty."""
        value = self.attr(name)
        items = [] if value is None else value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, bool | int | float) for item in items):
            raise self.malformed(f"attribute {name!r} is {value!r}, numbers are needed")
        return [float(item) for item in items if isinstance(item, bool | int | float)]

    def integers(self, name: str) -> list[int]:
        """A list of integers; a single one counts as a list of length 1, an absent one as empty."""
        return [int(item) for item in self.numbers(name)]

    def dtype(self, name: str) -> np.dtype | None:
        """An element type; None if absent or left open by the file. Floats of 16 bits are float32 here."""
        value = self.attr(name)
        found = DTYPE_OF_NUMBER.get(value) if isinstance(value, int) else value
        if found is None or isinstance(found, np.dtype):
            return np.dtype(np.float32) if found in HALVES else found
        raise self.malformed(f"attribute {name!r} is {value!r}, an element type is needed")

    def integers_or_value(self, name: str, whole: str, parts: str) -> list[int] | ir.Value:
        """Integers that the file gives as an attribute, as one tensor (input `whole`) or as one tensor each (`parts`).

        The numbers where all are known, else a 1-D int64 value. Tensors win over the attribute, as in Paddle.
        """
        names = self.op.inputs.get(whole, ()) or self.op.inputs.get(parts, ())
        if not names:
            return self.integers(name)
        known = [self._builder.constant(variable) for variable in names]
        if all(array is not None for array in known):
            return [int(item) for array in known if array is not None for item in array.ravel()]
        pieces = [
            self._as_int64_vector(variable) if array is None else self.int64(array.ravel().tolist())
            for variable, array in zip(names, known, strict=True)
        ]
        value = pieces[0] if len(pieces) == 1 else self.node("Concat", *pieces, axis=0)
        sizes = shape_elements(value) or [None]
        found = [size for size in sizes if isinstance(size, int)]
        return found if len(found) == len(sizes) else value

    def _as_int64_vector(self, variable: str) -> ir.Value:
        value = self.cast(self._builder.value(variable), np.dtype(np.int64))
        if value.shape is not None and len(value.shape) == 1:
            return value
        return self.node("Reshape", value, self.int64([-1]))

    def known_integers(self, name: str, whole: str, parts: str) -> list[int]:
        """As `integers_or_value`, where a rule cannot work with numbers that the model computes."""
        value = self.integers_or_value(name, whole, parts)
        if isinstance(value, ir.Value):
            raise self.unsupported(f"{name!r} is computed by the model, constants are needed")
        return value

    # -- shapes -------------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value) -> list[int | None]:
        """Shape of a value, None for sizes that are not known. The rank must be."""
        if value.shape is None:
            raise self.unsupported(
                f"the rank of {value.name!r} is not known", "give the input's sizes with Global.input_shape"
            )
        return [dim if isinstance(dim, int) else None for dim in value.shape]

    def rank(self, value: ir.Value) -> int:
        """Number of dimensions; it must be known."""
        return len(self.dims(value))

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front; it must exist."""
        if not -rank <= axis < rank:
            raise self.malformed(f"axis {axis} does not exist in {rank} dimensions")
        return axis % rank

    def static_dims(self, value: ir.Value, *axes: int) -> list[int]:
        """Sizes of some axes that must be known."""
        dims = self.dims(value)
        if any(axis >= len(dims) for axis in axes):
            raise self.malformed(f"{value.name!r} of shape {_shape_text(value)} has too few axes for it")
        found = [dims[axis] for axis in axes]
        if any(dim is None for dim in found):
            raise self.unsupported(
                f"the size of {value.name!r} must be known, it is {_shape_text(value)}",
                "give the input's sizes with Global.input_shape",
            )
        return [dim for dim in found if dim is not None]

    # -- outputs ------------------------------------------------------------------------------------------------

    def node(self, op_type: str, *inputs: ir.Value | None, **attributes: NodeAttr) -> ir.Value:
        """Emits an ONNX node with one output."""
        return self._builder.node(op_type, inputs, attributes)[0]

    def nodes(self, op_type: str, *inputs: ir.Value | None, outputs: int, **attributes: NodeAttr) -> list[ir.Value]:
        """Emits an ONNX node with several outputs."""
        return list(self._builder.node(op_type, inputs, attributes, outputs))

    def tensor(self, array: Array) -> ir.Value:
        """An initializer."""
        return self._builder.tensor(array)

    def int64(self, numbers: Sequence[int]) -> ir.Value:
        """A 1-D int64 initializer (axes, shapes, pads)."""
        return self.tensor(np.asarray(numbers, dtype=np.int64).reshape(-1))

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A 0-d initializer of the element type of another value."""
        dtype = np.dtype(np.float32) if like.dtype is None else like.dtype.numpy()
        return self.tensor(np.asarray(number).astype(dtype))

    def cast(self, value: ir.Value, dtype: np.dtype) -> ir.Value:
        """The value in another element type; the value itself where it has that type."""
        wanted = ir.DataType.from_numpy(dtype)
        return value if value.dtype == wanted else self.node("Cast", value, to=int(wanted))

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape to numbers: 0 copies the size of the same axis, -1 takes what is left."""
        return self.node("Reshape", value, self.int64(shape))

    def name_size(self, value: ir.Value, axis: int, symbol: str) -> None:
        """Gives a size that ONNX's inference left open the name of what it is."""
        self._builder.name_size(value, axis, symbol)

    def set_constant(self, output: str, array: Array) -> None:
        """Gives an output a content that is known now; no node is made."""
        for name in self.op.outputs.get(output, ()):
            self._builder.set_constant(name, array)

    def declared_rank(self, output: str) -> int | None:
        """Rank that the file declares for an output."""
        for name in self.op.outputs.get(output, ()):
            variable = self._builder.program.variables.get(name)
            if variable is not None and variable.dims is not None:
                return len(variable.dims)
        return None


def _shape_text(value: ir.Value) -> str:
    return "unknown" if value.shape is None else str(list(value.shape))
