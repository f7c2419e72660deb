"""The program that Paddle Lite's converter makes of a model: kernels, scales, and the parts that go to an NPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullquant.errors import ModelError
from fullquant.formats.framework_pb2 import AttrType, BlockDesc, OpDesc, ProgramDesc, VarType
from fullquant.formats.param_stream import read_combined

Array = npt.NDArray[np.generic]
AttributeValue = bool | int | float | str | list[int] | list[float] | list[str]

#: Matrix products: the operators whose weights are quantized.
LAYERS = frozenset({"conv2d", "depthwise_conv2d", "conv2d_transpose", "fc", "mul", "matmul", "matmul_v2"})
#: Operators that Lite adds to carry tensors from one kernel to the next.
TRANSFERS = frozenset({"calib", "calib_once", "io_copy", "io_copy_once", "layout", "layout_once", "feed", "fetch"})

_KERNEL = "__@kernel_type_attr@__"
# Numbers of lite/api/paddle_place.h: TargetType and PrecisionType.
_PLACES = {1: "host", 2: "x86", 3: "cuda", 4: "arm", 5: "opencl", 18: "nnadapter"}
_PRECISIONS = {1: "float32", 2: "int8", 3: "int32", 4: "any", 5: "float16", 6: "bool", 7: "int64"}
_MEMBERS = {
    AttrType.INT: "i", AttrType.FLOAT: "f", AttrType.STRING: "s", AttrType.INTS: "ints", AttrType.FLOATS: "floats",
    AttrType.STRINGS: "strings", AttrType.BOOLEAN: "b", AttrType.LONG: "l", AttrType.LONGS: "longs",
}  # fmt: skip
_NO_PARAMETER = (VarType.FEED_MINIBATCH, VarType.FETCH_LIST, VarType.RAW, VarType.READER)


@dataclass(frozen=True)
class LiteOperator:
    """One operator of the optimised program.

    alias, place, precision: of the kernel that was picked; empty inside an NPU's subgraph, which has none.
    """

    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, AttributeValue]
    alias: str = ""
    place: str = ""
    precision: str = ""

    @property
    def int8(self) -> bool:
        """Whether Lite marked it for an int8 kernel."""
        return bool(self.attributes.get("enable_int8", False))

    @property
    def output(self) -> str:
        """The first output's name: how the operator is called in reports."""
        return next((name for names in self.outputs.values() for name in names), "")

    def scales(self, parameter: str) -> npt.NDArray[np.float32] | None:
        """Steps of the first tensor at a parameter ("Input", "Filter", "Output", "Out", "X", ...), None without."""
        value = self.attributes.get(f"{parameter}0_scale")
        return np.asarray(value, dtype=np.float32) if isinstance(value, list) else None

    @property
    def output_scale(self) -> npt.NDArray[np.float32] | None:
        """Step of the output, None where Lite knows none."""
        return next((s for s in map(self.scales, ("Output", "Out", "Y")) if s is not None), None)

    @property
    def weight(self) -> str | None:
        """Name of the weight of a layer: what the parameters Filter, W or Y hold."""
        names = next((self.inputs[p] for p in ("Filter", "W", "Y") if self.inputs.get(p)), ())
        return names[0] if names else None


@dataclass(frozen=True)
class OptimisedProgram:
    """operators: those of the main block. subgraphs: the operators of each NPU subgraph. parameters: by name."""

    operators: tuple[LiteOperator, ...]
    subgraphs: tuple[tuple[LiteOperator, ...], ...]
    parameters: Mapping[str, Array]

    def __iter__(self) -> Iterator[LiteOperator]:
        """Every operator, those of the subgraphs after those of the main block."""
        yield from self.operators
        for operators in self.subgraphs:
            yield from operators

    def stored_weight(self, op: LiteOperator) -> tuple[str, Array] | None:
        """(name, content) of a layer's constant weight, also where Lite converts it before use; None without one."""
        name = op.weight
        origin = {op.output: op for op in self.operators if op.type in TRANSFERS}
        while name in origin:
            name = next((n for names in origin[name].inputs.values() for n in names), None)
        return (name, self.parameters[name]) if name is not None and name in self.parameters else None

    @property
    def outside(self) -> tuple[LiteOperator, ...]:
        """Operators of the main block that compute: no transfers and no subgraphs."""
        return tuple(op for op in self.operators if op.type not in TRANSFERS and op.type != "subgraph")


def load_optimised(folder: Path) -> OptimisedProgram:
    """Reads the files model and params that `--optimize_out_type=protobuf` writes. Raises ModelError."""
    path = folder / "model"
    desc = ProgramDesc()
    try:
        desc.ParseFromString(path.read_bytes())
        if not desc.IsInitialized() or not desc.blocks:
            raise ValueError("no blocks")
    except Exception as error:  # protobuf's own exception types differ between its implementations
        raise ModelError(f"{path}: is not a program of Paddle Lite's converter ({error}); convert again") from error
    names = [v.name for v in desc.blocks[0].vars if v.persistable and v.type.type not in _NO_PARAMETER]
    parameters = read_combined(folder / "params", sorted(names))
    return optimised_program(desc, parameters)


def optimised_program(desc: ProgramDesc, parameters: Mapping[str, Array]) -> OptimisedProgram:
    """The optimised program in a message of the converter, with its parameters by name.

    The numbers of its blocks are not to be trusted (converter 2.13rc0 writes memory that it never set); an operator
    `subgraph` names its block by place, in the attribute sub_block.
    """
    main = _operators(desc.blocks[0])
    inner = [op.attributes.get("sub_block") for op in main if op.type == "subgraph"]
    if not all(isinstance(place, int) and 0 < place < len(desc.blocks) for place in inner):
        raise ModelError(
            f"the optimised program's subgraphs name the blocks {inner} of {len(desc.blocks)}; convert again"
        )
    subgraphs = tuple(_operators(desc.blocks[place]) for place in inner if isinstance(place, int))
    return OptimisedProgram(main, subgraphs, parameters)


def _operators(block: BlockDesc) -> tuple[LiteOperator, ...]:
    return tuple(_operator(op) for op in block.ops)


def _operator(op: OpDesc) -> LiteOperator:
    attributes = {a.name: _value(a) for a in op.attrs if a.type in _MEMBERS}
    alias, place, precision = _kernel(attributes.pop(_KERNEL, ""))
    return LiteOperator(
        op.type,
        {var.parameter: tuple(var.arguments) for var in op.inputs},
        {var.parameter: tuple(var.arguments) for var in op.outputs},
        attributes,
        alias,
        place,
        precision,
    )


def _value(attribute: OpDesc.Attr) -> AttributeValue:
    value = getattr(attribute, _MEMBERS[attribute.type])
    return value if isinstance(value, bool | int | float | str) else list(value)


def _kernel(text: AttributeValue) -> tuple[str, str, str]:
    """ "conv2d/int8_out/4/2/1" -> ("int8_out", "arm", "int8"): operator, alias, place, precision, layout."""
    parts = str(text).split("/")
    if len(parts) != 5 or not (parts[2].isdigit() and parts[3].isdigit()):
        return "", "", ""
    place, precision = int(parts[2]), int(parts[3])
    return parts[1], _PLACES.get(place, f"place {place}"), _PRECISIONS.get(precision, f"precision {precision}")
