"""Written int8 files, opened for damage: every test of a rule breaks one thing and writes the file again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.calibration.calibrator import raise_to_bias_floors
from fullquant.formats.framework_pb2 import AttrType, OpDesc, ProgramDesc
from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.formats.param_stream import read_combined, write_combined
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers.program_desc import load_program
from fullquant.writers.onnx_qdq import build_onnx
from fullquant.writers.program_desc import write_paddle
from tests.writers.paddle_oracle import minmax_qparams


class PaddleFile:
    """A .pdmodel with its parameters, to be changed and saved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.desc = ProgramDesc.FromString(path.read_bytes())
        names = [v.name for v in load_program(path).parameters]
        stored = read_combined(path.with_suffix(".pdiparams"), names)
        self.parameters = {name: np.array(array) for name, array in stored.items()}

    @property
    def ops(self) -> list[OpDesc]:
        return list(self.desc.blocks[0].ops)

    def op(self, kind: str, index: int = 0) -> OpDesc:
        return [op for op in self.ops if op.type == kind][index]

    def bound(self, op: OpDesc, parameter: str) -> str:
        return next(v.arguments[0] for v in (*op.inputs, *op.outputs) if v.parameter == parameter and v.arguments)

    def reader(self, kind: str, name: str) -> OpDesc:
        """The first operator of a kind whose X is the variable."""
        return next(op for op in self.ops if op.type == kind and self.bound(op, "X") == name)

    def maker(self, name: str) -> OpDesc:
        """The operator that writes a variable."""
        return next(op for op in self.ops for v in op.outputs if name in v.arguments)

    def front_of(self, name: str) -> str:
        """The variable in front of the pair of quantizers that makes `name`; itself where there is none."""
        pair = [op for op in self.ops if op.type == "dequantize_linear" and self.bound(op, "Y") == name]
        if not pair or self.bound(pair[0], "X") in self.parameters:
            return name
        return self.bound(self.maker(self.bound(pair[0], "X")), "X")

    def rebind(self, op: OpDesc, parameter: str, name: str, index: int = 0) -> None:
        """Another variable at an input or output."""
        next(v for v in (*op.inputs, *op.outputs) if v.parameter == parameter).arguments[index] = name

    def unbind(self, op: OpDesc, parameter: str) -> None:
        del next(v for v in op.inputs if v.parameter == parameter).arguments[:]

    def set(self, op: OpDesc, name: str, value: bool | int | float | list[int]) -> None:
        """An attribute that is there already."""
        attribute = next(a for a in op.attrs if a.name == name)
        if isinstance(value, bool):
            attribute.b = value
        elif isinstance(value, int):
            attribute.i = value
        elif isinstance(value, float):
            attribute.f = value
        else:
            attribute.ints[:] = value

    def drop_attribute(self, op: OpDesc, *names: str) -> None:
        kept = [a for a in op.attrs if a.name not in names]
        del op.attrs[:]
        op.attrs.extend(kept)

    def add_float(self, op: OpDesc, name: str, value: float) -> None:
        op.attrs.add(name=name, type=AttrType.FLOAT, f=value)

    def remove(self, op: OpDesc) -> None:
        kept = [o for o in self.ops if o != op]
        del self.desc.blocks[0].ops[:]
        self.desc.blocks[0].ops.extend(kept)

    def store(self, name: str, array: np.ndarray) -> None:
        """New content of a parameter, declared as it is; a new one is declared too."""
        block = self.desc.blocks[0]
        variable = next((v for v in block.vars if v.name == name), None)
        if variable is None:
            variable = block.vars.add()
            variable.CopyFrom(next(v for v in block.vars if v.name in self.parameters))
            variable.name = name
        tensor = variable.type.dense_tensor.tensor
        tensor.data_type = NUMBER_OF_DTYPE[array.dtype]
        tensor.dims[:] = array.shape
        self.parameters[name] = array

    def retype(self, name: str, dtype: type) -> None:
        variable = next(v for v in self.desc.blocks[0].vars if v.name == name)
        variable.type.dense_tensor.tensor.data_type = NUMBER_OF_DTYPE[np.dtype(dtype)]

    def save(self) -> Path:
        self.path.write_bytes(self.desc.SerializeToString())
        with self.path.with_suffix(".pdiparams").open("wb") as stream:
            write_combined(stream, self.parameters)
        return self.path


def calibrated(model: ir.Model, placement: Placement, x: np.ndarray) -> dict[str, QParams]:
    """Scales of the largest values, those of weights with the floor that keeps biases inside int32."""
    return raise_to_bias_floors(model, placement, minmax_qparams(model, placement, x))


def paddle_file(folder: Path, model: ir.Model, x: np.ndarray, *, onnx_format: bool = True) -> Path:
    """The int8 file of a graph, calibrated on x."""
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="short"))
    qparams = calibrated(model, placement, x)
    path = folder / "m.pdmodel"
    write_paddle(model, placement, qparams, path, folder / "m.pdiparams", onnx_format=onnx_format)
    return path


def qdq_model(model: ir.Model, x: np.ndarray, target: str = "onnxruntime") -> ir.Model:
    """The ONNX QDQ form of a graph, calibrated on x; symmetric grids, so that every layout can hold it."""
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="short"))
    layout = "tensorrt" if target == "tensorrt" else "onnxruntime"
    return build_onnx(model, placement, calibrated(model, placement, x), runtime=layout)


Damage = Callable[[PaddleFile], str]
