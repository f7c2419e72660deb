"""Builds the ONNX graph of a Paddle program, one operator after the other.

Every value gets its type and shape the moment it is made (ONNX shape inference of the single node), so that a rule of
`paddle_ops` can look at the shapes of its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.shape_inference import infer_node_outputs

from fullquant.errors import ModelError
from fullquant.readers.program import PaddleOp, Program

OPSET = 20
IR_VERSION = 10

Array = npt.NDArray[np.generic]
NodeAttr = int | float | str | Sequence[int] | Sequence[float]

_OPSET_IMPORTS = [onnx.helper.make_opsetid("", OPSET)]
# Constants up to this many elements take part in shape inference (shapes, axes, pads); weights don't.
_MAX_SHAPE_CONSTANT = 64


class GraphBuilder:
    """State of a translation: which value each Paddle variable has at this point, and the nodes made so far."""

    def __init__(self, program: Program, parameters: Mapping[str, Array]) -> None:
        self.program = program
        self._constants: dict[str, Array] = dict(parameters)
        self._values: dict[str, ir.Value] = {}
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._data: dict[ir.Value, onnx.TensorProto] = {}
        self._taken: set[str] = set(program.variables) | set(parameters)
        self._named: set[str] = set()
        self._inner: Counter[str] = Counter()
        self._op_index: Counter[str] = Counter()
        self._initializers: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._op: PaddleOp | None = None
        self._op_nodes: list[ir.Node] = []
        self._op_name = ""

    # -- values -------------------------------------------------------------------------------------------------

    def add_input(self, name: str, dtype: np.dtype, dims: Sequence[int | str | None]) -> ir.Value:
        """Declares a graph input. dims: a number, a symbol, or None for unknown."""
        value = ir.Value(name=name)
        self._set_type(value, onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), dims))
        self._values[name] = value
        self._named.add(name)
        return value

    def value(self, name: str) -> ir.Value:
        """The current value of a Paddle variable. A parameter or constant becomes an initializer on its first use."""
        known = self._values.get(name)
        if known is not None:
            return known
        constant = self._constants.get(name)
        if constant is None:
            raise ModelError(
                f"{self.where()}: variable {name!r} is read before any operator writes it, and it is no parameter; "
                "the program is damaged or was cut at the wrong place, export it again"
            )
        value = self._initializer(name, constant)
        self._values[name] = value
        return value

    def constant(self, name: str) -> Array | None:
        """The content of a variable whose value is known before the model runs, else None."""
        return self._constants.get(name)

    def set_constant(self, name: str, array: Array) -> None:
        """Gives a Paddle variable a known content; it becomes an initializer only if a node reads it."""
        self._constants[name] = array
        self._values.pop(name, None)

    def set_value(self, name: str, value: ir.Value) -> None:
        """Binds a Paddle variable to a value, which takes over its name.

        A variable that is written twice (in-place operators) keeps its name for the first value; later ones are told
        apart by a suffix. A value that already stands for a variable is passed on through an Identity node.
        """
        if value.name in self._named:
            value = self.node("Identity", [value])[0]
        value.name = self._unique(name)
        self._values[name] = value
        self._constants.pop(name, None)
        if value.shape is None:
            self._declare(name, value)

    def tensor(self, array: Array) -> ir.Value:
        """A new initializer for a constant that belongs to a rule (an axis, a bound)."""
        return self._initializer(self._inner_name("const"), array)

    def type_of(self, value: ir.Value) -> onnx.TypeProto:
        """The ONNX type of a value, with what is known of its shape."""
        return self._types.get(value, onnx.TypeProto())

    def name_size(self, value: ir.Value, axis: int, symbol: str) -> None:
        """Gives a size that ONNX's inference left open the name of what it is."""
        proto = self.type_of(value)
        if axis < len(proto.tensor_type.shape.dim):
            proto.tensor_type.shape.dim[axis].dim_param = symbol
            self._set_type(value, proto)

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._named:
            count += 1
            unique = f"{name}@{count}"
        self._named.add(unique)
        self._taken.add(unique)
        return unique

    def _initializer(self, variable: str, array: Array) -> ir.Value:
        name = self._unique(variable)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor)
        self._set_type(value, onnx.helper.make_tensor_type_proto(int(tensor.dtype), list(array.shape)))
        if array.size <= _MAX_SHAPE_CONSTANT and array.dtype in (np.int64, np.int32, np.float32):
            self._data[value] = onnx.numpy_helper.from_array(array, name)
        self._initializers.append(value)
        return value

    def _declare(self, name: str, value: ir.Value) -> None:
        """What the file declares for the variable, where inference doesn't know even the rank."""
        variable = self.program.variables.get(name)
        if variable is None or variable.dims is None or variable.dtype is None:
            return
        dims = [dim if dim >= 0 else None for dim in variable.dims]
        element = int(value.dtype) if value.dtype else onnx.helper.np_dtype_to_tensor_dtype(variable.dtype)
        self._set_type(value, onnx.helper.make_tensor_type_proto(element, dims))

    def _set_type(self, value: ir.Value, proto: onnx.TypeProto) -> None:
        self._types[value] = proto
        value.type = ir.serde.deserialize_type_proto_for_type(proto)
        value.shape = ir.serde.deserialize_type_proto_for_shape(proto)

    def _inner_name(self, role: str) -> str:
        stem = f"{self._op_name}.{role}"
        name = stem if self._inner[stem] == 0 else f"{stem}_{self._inner[stem]}"
        self._inner[stem] += 1
        if name in self._taken:
            return self._inner_name(role)
        self._taken.add(name)
        return name

    # -- nodes --------------------------------------------------------------------------------------------------

    def begin(self, op: PaddleOp) -> None:
        """Starts an operator: nodes made from now on are its nodes."""
        self._op = op
        self._op_nodes = []
        self._op_name = f"{op.type}_{self._op_index[op.type]}"
        self._op_index[op.type] += 1

    def end(self) -> None:
        """Ends an operator. Its last node gets the plain name ("conv2d_0"), those before it a number ("conv2d_0.0")."""
        for index, node in enumerate(self._op_nodes[:-1]):
            node.name = f"{self._op_name}.{index}"
        if self._op_nodes:
            self._op_nodes[-1].name = self._op_name
        self._nodes.extend(self._op_nodes)
        self._op_nodes = []

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, NodeAttr] | None = None,
        outputs: int = 1,
    ) -> Sequence[ir.Value]:
        """Appends an ONNX node and infers its outputs' types. Raises ModelError where ONNX finds them inconsistent."""
        assert self._op is not None
        metadata = {"fullquant.op_type": self._op.type}
        if self._op.namescope.strip("/"):
            metadata["fullquant.namescope"] = self._op.namescope
        node = ir.node(op_type, inputs, dict(attributes or {}), num_outputs=outputs, metadata_props=metadata)
        for value in node.outputs:
            value.name = self._inner_name("out")
        self._infer(node)
        self._op_nodes.append(node)
        return node.outputs

    def _infer(self, node: ir.Node) -> None:
        used = [value for value in node.inputs if value is not None]
        try:
            proto = ir.serde.serialize_node(node)
            inferred = infer_node_outputs(
                onnx.defs.get_schema(node.op_type, OPSET),
                proto,
                {str(value.name): self.type_of(value) for value in used},
                {str(value.name): self._data[value] for value in used if value in self._data},
                opset_imports=_OPSET_IMPORTS,
                ir_version=IR_VERSION,
            )
        except Exception as error:  # conversion and inference raise types of several libraries
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{self.where()}: the shapes don't fit together ({reason}); export the model again"
            ) from None
        for value in node.outputs:
            if str(value.name) in inferred:
                self._set_type(value, inferred[str(value.name)])

    # -- the end ------------------------------------------------------------------------------------------------

    def where(self) -> str:
        """File, operator and output variable, for the start of an error message."""
        if self._op is None:
            return str(self.program.path)
        return f"{self.program.path}: operator {self._op.type!r} (output {self._op.first_output()!r})"

    def model(self) -> ir.Model:
        """The finished model, with shapes inferred over the whole graph (through computed shapes as well)."""
        self._op = None
        inputs = [self._values[variable.name] for variable in self.program.inputs]
        outputs = [self.value(name) for name in self.program.outputs]
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports={"": OPSET},
            name=self.program.path.stem or "model",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="fullquant")
