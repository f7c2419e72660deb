"""What the int8 Paddle file says about each layer, to be compared with what Paddle Lite's converter kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullquant.formats.framework_pb2 import BlockDesc, OpDesc, ProgramDesc
from fullquant.formats.param_stream import read_combined
from fullquant.numerics.qparams import scale_from_paddle
from fullquant.readers.program_desc import parse_program

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]

_LAYERS = {
    "conv2d": ("Input", "Filter"), "depthwise_conv2d": ("Input", "Filter"), "conv2d_transpose": ("Input", "Filter"),
    "matmul_v2": ("X", "Y"), "matmul": ("X", "Y"), "mul": ("X", "Y"),
}  # fmt: skip
_NO_PARAMETER = ("feed", "fetch")


@dataclass(frozen=True)
class SourceLayer:
    """weight: int8, as stored. weight_scale: steps, shape (1,) or (C_out,). input_scale: step, None where float.

    normalised: a batch_norm follows, which converters fold into the scales.
    """

    weight: npt.NDArray[np.int8]
    weight_scale: FloatArray
    input_scale: float | None
    normalised: bool = False


def read_source(model: Path, params: Path) -> tuple[ProgramDesc, Mapping[str, Array]]:
    """The program and its parameters by name. Raises ModelError."""
    desc = parse_program(model)
    names = sorted(v.name for v in desc.blocks[0].vars if v.persistable and v.name not in _NO_PARAMETER)
    return desc, read_combined(params, names)


def is_quantized(desc: ProgramDesc) -> bool:
    """Whether the program holds quantizers, of either form (quantize_linear, or fake_quantize operators)."""
    return any(op.type.startswith(("quantize_linear", "fake_quantize")) for op in desc.blocks[0].ops)


def source_layers(desc: ProgramDesc, parameters: Mapping[str, Array]) -> Mapping[str, SourceLayer]:
    """Weight's name -> layer, for layers with int8 weights, in a file of either form."""
    block = desc.blocks[0]
    producers = {name: op for op in block.ops for var in op.outputs for name in var.arguments}
    found: dict[str, SourceLayer] = {}
    for op in block.ops:
        if op.type not in _LAYERS:
            continue
        source, weight = (argument(op, parameter) for parameter in _LAYERS[op.type])
        read = _weight_of_pair(producers.get(weight), parameters) or _weight_of_fake(op, weight, block, parameters)
        if read is not None:
            name, stored, steps = read
            values = np.asarray(stored, dtype=np.int8)
            scale = _input_scale(producers.get(source), parameters)
            found[name] = SourceLayer(values, steps, scale, _is_normalised(op, block))
    return found


def argument(op: OpDesc, parameter: str) -> str:
    """The first variable at a parameter of an operator, "" where there is none."""
    return next(
        (var.arguments[0] for var in (*op.inputs, *op.outputs) if var.parameter == parameter and var.arguments), ""
    )


def _weight_of_pair(op: OpDesc | None, parameters: Mapping[str, Array]) -> tuple[str, Array, FloatArray] | None:
    """The stored weight behind a dequantize_linear (format A)."""
    if op is None or op.type != "dequantize_linear":
        return None
    name, scale = argument(op, "X"), argument(op, "Scale")
    if name not in parameters or parameters[name].dtype != np.int8:
        return None
    return name, parameters[name], scale_from_paddle(parameters[scale])


def _weight_of_fake(
    op: OpDesc, weight: str, block: BlockDesc, parameters: Mapping[str, Array]
) -> tuple[str, Array, FloatArray] | None:
    """A weight of integers, in float32 or int8, whose scale is in the fake_*dequantize* behind the layer (format B)."""
    stored = parameters.get(weight)
    result = next((name for var in op.outputs for name in var.arguments), "")
    reader = next((o for o in block.ops if o.type.startswith("fake_") and argument(o, "X") == result), None)
    if stored is None or reader is None or "dequantize" not in reader.type:
        return None
    scale = argument(reader, "Scales") or argument(reader, "Scale")
    if scale not in parameters or not np.array_equal(stored, np.rint(stored.astype(np.float32))):
        return None
    return weight, stored.astype(np.int8), scale_from_paddle(parameters[scale]).reshape(-1)


def _is_normalised(op: OpDesc, block: BlockDesc) -> bool:
    """Whether a batch_norm reads the layer's output, through quantizers."""
    name = next((name for var in op.outputs for name in var.arguments), "")
    for reader in block.ops:
        if argument(reader, "X") == name:
            if reader.type == "batch_norm":
                return True
            if reader.type.startswith(("quantize_linear", "dequantize_linear", "fake_")):
                name = argument(reader, "Y") or argument(reader, "Out")
    return False


def _input_scale(op: OpDesc | None, parameters: Mapping[str, Array]) -> float | None:
    if op is None or not op.type.startswith(("dequantize_linear", "fake_quantize")):
        return None
    scale = argument(op, "Scale") or argument(op, "InScale")
    return float(scale_from_paddle(parameters[scale]).reshape(-1)[0]) if scale in parameters else None
