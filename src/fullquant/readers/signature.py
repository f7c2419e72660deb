"""What the canonical graph demands of a model's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError

_IMAGE_AXES = ("N", "C", "H", "W")


_HALVES = ("float16", "bfloat16")


def choose_output(path: Path, outputs: Mapping[str, Sequence[int | str] | None], wanted: str | None) -> str:
    """The name of the output that is quantized: the one that is wanted, or the only one. outputs: {name: shape}.

    Raises ModelError where it is not there, or where several are and none is named.
    """
    if wanted is not None:
        if wanted not in outputs:
            raise ModelError(
                f"{path}: Global.output_name (--output-name) is {wanted!r}, the model has {_listed(outputs)}; "
                "name one of them"
            )
        return wanted
    if len(outputs) == 1:
        return next(iter(outputs))
    if not outputs:
        raise ModelError(f"{path}: the model has 0 outputs (none), a classifier has one; export it again")
    raise ModelError(
        f"{path}: the model has {len(outputs)} outputs ({_listed(outputs)}), one is quantized: say which with "
        "Global.output_name (--output-name), of a teacher with Distillation.teacher_output_name; as a rule the first"
    )


def _listed(outputs: Mapping[str, Sequence[int | str] | None]) -> str:
    return ", ".join(
        f"{name!r}" if shape is None else f"{name!r} [{', '.join(map(str, shape))}]" for name, shape in outputs.items()
    )


def check_inputs(path: Path, inputs: Sequence[str]) -> None:
    """Raises ModelError unless the model, as far as its output depends on it, has one input."""
    if len(inputs) != 1:
        listed = ", ".join(repr(name) for name in inputs) or "none"
        raise ModelError(
            f"{path}: the model has {len(inputs)} inputs ({listed}), an image classifier has one; "
            "export it with the image as its only input and constants in place of the others"
        )


def check_precision(path: Path, elements: Iterable[tuple[str, str]], what: str) -> None:
    """Raises ModelError where one of `elements`, (name, element type), is a float of 16 bits. what: "parameter" or so.

    Calibration and training compute in float32: a model that rounds elsewhere would be another model.
    """
    halves = [(name, kind) for name, kind in elements if kind in _HALVES]
    if halves:
        name, kind = halves[0]
        more = f" (and {len(halves) - 1} more)" if len(halves) > 1 else ""
        raise ModelError(
            f"{path}: {what} {name!r}{more} is {kind}, only float32 models are read; "
            "export the model in float32, without mixed precision"
        )


def check_numbers(path: Path, initializers: Iterable[ir.Value]) -> None:
    """Raises ModelError where a parameter holds NaN, for which no integer stands. Infinities stand in masks."""
    for value in initializers:
        tensor = value.const_value
        if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            continue
        missing = int(np.isnan(tensor.numpy()).sum())
        if missing:
            raise ModelError(
                f"{path}: {missing} of {tensor.size} values of parameter {value.name!r} are NaN; "
                "the training or the export failed, take another checkpoint"
            )


def element_types(values: Iterable[ir.Value]) -> list[tuple[str, str]]:
    """(name, element type in NumPy's words) of the values that have one."""
    return [(str(value.name), value.dtype.name.lower()) for value in values if value.dtype is not None]


def input_dims(
    path: Path, name: str, declared: Sequence[int], input_shape: Mapping[str, Sequence[int]]
) -> list[int | str]:
    """Sizes of the input: known ones as numbers, open ones (-1) as symbols, N C H W for images.

    input_shape replaces the declared shape. Raises ModelError where it names another input or has another rank.
    """
    unknown = sorted(set(input_shape) - {name})
    if unknown:
        raise ModelError(f"{path}: input_shape names {unknown[0]!r}, the model's input is {name!r}; use that name")
    if not declared:
        raise ModelError(f"{path}: input {name!r} is a single number, an image is needed; export an image classifier")
    dims = [int(size) for size in input_shape.get(name, declared)]
    if len(dims) != len(declared):
        raise ModelError(
            f"{path}: input_shape {dims} of {name!r} has {len(dims)} sizes, the model declares {list(declared)}; "
            "give Global.input_shape one for each"
        )
    symbols = _IMAGE_AXES if len(dims) == 4 else ("N", *(f"{name}_dim{axis}" for axis in range(1, len(dims))))
    return [size if size > 0 else symbol for size, symbol in zip(dims, symbols, strict=True)]
