"""Puts a Paddle program (`*.pdmodel`) and its parameters together: variables, operators, attributes, feed and fetch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fullquant.errors import ExportError
from fullquant.formats.framework_pb2 import AttrType as Kind
from fullquant.formats.framework_pb2 import BlockDesc, OpDesc, ProgramDesc, VarType
from fullquant.formats.paddle_types import NUMBER_OF_DTYPE

Array: TypeAlias = npt.NDArray[np.generic]
Attribute: TypeAlias = "bool | int | float | str | Sequence[int] | Sequence[float]"
Names: TypeAlias = Mapping[str, Sequence[str]]

# PaddlePaddle 2.6.2, whose PaddleSlim defines the int8 format; Paddle Lite 2.13, 2.14 and Paddle 3 read it.
PROGRAM_VERSION = 2_006_002
# Revision of the definition of each operator in that release. An operator that is not listed is at revision 0.
OPERATOR_VERSIONS = {
    "clip": 1,
    "conv2d": 1,
    "depthwise_conv2d": 1,
    "elementwise_add": 1,
    "elementwise_div": 1,
    "elementwise_mul": 1,
    "elementwise_pow": 1,
    "elementwise_sub": 1,
    "gather": 1,
    "leaky_relu": 1,
    "mish": 1,
    "softplus": 1,
}


@dataclass(frozen=True)
class PaddleProgram:
    """A finished program and the tensors of its persistable variables, by name."""

    desc: ProgramDesc
    parameters: Mapping[str, Array]


class ProgramBuilder:
    """One block, built in order of execution. A variable is declared once, before the operator that writes it."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        """taken: names that belong to variables declared later, which `unique_name` must not give away."""
        self._desc = ProgramDesc()
        self._block: BlockDesc = self._desc.blocks.add(idx=0, parent_idx=-1)
        self._parameters: dict[str, Array] = {}
        self._declared: set[str] = set()
        self._taken: set[str] = {"feed", "fetch", *taken}
        for name, kind in (("feed", VarType.FEED_MINIBATCH), ("fetch", VarType.FETCH_LIST)):
            self._block.vars.add(name=name, persistable=True).type.type = kind
        self._fetched = 0

    def unique_name(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted_1`, `wanted_2`, ... that no variable has; it is taken from now on."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def is_declared(self, name: str) -> bool:
        """Whether a variable of this name exists already."""
        return name in self._declared

    def declare(self, name: str, dtype: np.dtype, shape: Sequence[int], *, persistable: bool = False) -> None:
        """Adds a variable; -1 stands for a size known only at run time. Raises ExportError on a second declaration."""
        if name in self._declared:
            raise ExportError(f"the variable {name!r} would be defined twice; give the graph's values different names")
        self._declared.add(name)
        self._taken.add(name)
        variable = self._block.vars.add(name=name, persistable=persistable)
        variable.type.type = VarType.DENSE_TENSOR
        tensor = variable.type.dense_tensor.tensor
        tensor.data_type = NUMBER_OF_DTYPE[dtype]
        tensor.dims.extend(shape)

    def add_parameter(self, name: str, array: Array) -> str:
        """Adds a persistable variable with its content and returns its name.

        A 0-d array is stored with shape [1]: tensors without axes are unknown to Paddle before 2.5 and to Paddle Lite.
        """
        array = array.reshape(1) if array.ndim == 0 else array
        self.declare(name, array.dtype, array.shape, persistable=True)
        self._parameters[name] = array
        return name

    def shape_of_parameter(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter that was added."""
        return self._parameters[name].shape

    def add_operator(self, kind: str, inputs: Names, outputs: Names, attributes: Mapping[str, Attribute]) -> None:
        """Appends an operator; `inputs` and `outputs` give the variables bound to each of its parameters."""
        op = self._block.ops.add(type=kind)
        for target, bound in ((op.inputs, inputs), (op.outputs, outputs)):
            for parameter, arguments in sorted(bound.items()):
                target.add(parameter=parameter, arguments=arguments)
        for name, value in sorted(attributes.items()):
            _add_attribute(op, name, value)

    def feed(self, name: str) -> None:
        """Makes the declared variable the program's next input."""
        column = sum(op.type == "feed" for op in self._block.ops)
        self.add_operator("feed", {"X": ["feed"]}, {"Out": [name]}, {"col": column})

    def fetch(self, name: str) -> None:
        """Makes the variable the program's next output."""
        self.add_operator("fetch", {"X": [name]}, {"Out": ["fetch"]}, {"col": self._fetched})
        self._fetched += 1

    def finish(self) -> PaddleProgram:
        """The program with its version and those of its operators."""
        self._desc.version.version = PROGRAM_VERSION
        used = {op.type for op in self._block.ops}
        for name in sorted(used & OPERATOR_VERSIONS.keys()):
            self._desc.op_version_map.pair.add(op_name=name).op_version.version = OPERATOR_VERSIONS[name]
        return PaddleProgram(self._desc, self._parameters)


def _add_attribute(op: OpDesc, name: str, value: Attribute) -> None:
    """Stores a value with the type that Paddle expects for it. An empty list holds integers, save for `scale`."""
    if isinstance(value, bool):  # before int: a bool is one
        op.attrs.add(name=name, type=Kind.BOOLEAN, b=value)
    elif isinstance(value, int):
        op.attrs.add(name=name, type=Kind.INT, i=value)
    elif isinstance(value, float):
        op.attrs.add(name=name, type=Kind.FLOAT, f=value)
    elif isinstance(value, str):
        op.attrs.add(name=name, type=Kind.STRING, s=value)
    elif any(isinstance(item, float) for item in value) or name == "scale":
        op.attrs.add(name=name, type=Kind.FLOATS, floats=value)
    else:
        op.attrs.add(name=name, type=Kind.INTS, ints=[int(item) for item in value])
