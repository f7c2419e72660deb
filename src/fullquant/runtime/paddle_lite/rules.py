"""Where a converted program would compute something else than it says: places that Paddle Lite gets wrong.

Each rule names where it was read; those for x86 were also measured in the interpreter of paddlelite 2.13rc0
(docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fullquant.runtime.paddle_lite.program import LiteOperator, OptimisedProgram

#: (operator, tensor, why)
Error = tuple[str, str, str]

_PRODUCTS = ("matmul", "matmul_v2", "mul")
# What lite/kernels/x86/conv_compute.cc applies behind an int8 convolution; any other activation is left out.
_X86_ACTIVATIONS = ("", "relu", "relu6", "leaky_relu")
_HARD_SWISH = {"threshold": 6.0, "scale": 6.0, "offset": 3.0}


def timvx_errors(operators: Sequence[LiteOperator], program: OptimisedProgram) -> Iterator[Error]:
    """What VeriSilicon's driver in NNAdapter (driver/verisilicon_timvx) computes wrongly or refuses in a subgraph."""
    for index, op in enumerate(operators):
        if op.type in ("slice", "strided_slice") and _steps(op):
            yield (
                op.type, op.output,
                "TIM-VX gets the slice without its steps (converter/slice.cc): quantize again, for a convolution",
            )  # fmt: skip
        if op.type == "hard_swish" and any(op.attributes.get(k, v) != v for k, v in _HARD_SWISH.items()):
            yield op.type, op.output, "TIM-VX takes threshold 6, scale 6 and offset 3 only (converter/hard_swish.cc)"
        scales = op.scales("Y") if op.type in _PRODUCTS else None
        if scales is not None and scales.size > 1 and not _has_bias(operators[index + 1 :], op, program):
            yield (
                op.type, op.output,
                "its weights have a scale per column, which the bridge puts on the rows unless a bias is added behind "
                "(optimizer/fuse_matmul_add_into_fully_connected.cc): weight_quantize_type: abs_max, or add a bias",
            )  # fmt: skip


def _steps(op: LiteOperator) -> bool:
    strides = op.attributes.get("strides", [])
    return isinstance(strides, list) and any(step != 1 for step in strides)


def _has_bias(following: Sequence[LiteOperator], op: LiteOperator, program: OptimisedProgram) -> bool:
    """Whether the next reader of the product adds a stored vector to it."""
    reader = next((o for o in following if any(op.output in names for names in o.inputs.values())), None)
    if reader is None or reader.type != "elementwise_add":
        return False
    return any(name in program.parameters for name in reader.inputs.get("Y", ()))


def x86_errors(program: OptimisedProgram) -> Iterator[Error]:
    """What Paddle Lite's int8 kernels on x86 compute wrongly."""
    for op in program.outside:
        if op.place != "x86":
            continue
        activation = op.attributes.get("act_type", "")
        if "conv2d" in op.type and op.precision == "int8" and activation not in _X86_ACTIVATIONS:
            yield op.type, op.output, f"the int8 kernel leaves out the fused {activation} (kernels/x86/conv_compute.cc)"
        if "conv2d" in op.type and op.precision == "int8" and _reads_beside_no_bias(op):
            yield op.type, op.output, "in groups and without a bias, its kernel reads memory that is not there (ibid.)"
        scales = op.scales("Y") if op.type in _PRODUCTS and op.precision == "float32" and op.int8 else None
        if scales is not None and np.unique(scales).size > 1:
            why = "every column gets the first one's scale (mir/type_precision_cast_pass.cc)"
            yield op.type, op.output, f"{why}: weight_quantize_type: abs_max"


def _reads_beside_no_bias(op: LiteOperator) -> bool:
    groups = op.attributes.get("groups", 1)
    return isinstance(groups, int) and groups > 1 and not op.inputs.get("Bias")


def x86_notes(program: OptimisedProgram) -> Iterator[str]:
    """What depends on the input there."""
    if any(op.type == "calib" and op.place == "x86" and op.alias == "fp32_to_int8" for op in program.operators):
        yield (
            "x86: where the number of elements of a tensor leaves 8 to 31 modulo 32, the conversion to int8 leaves "
            "half of the last ones unwritten (backends/x86/math/calib.cc); use batches of a multiple of 32"
        )
    wide = [
        op.output
        for op in program.outside
        if op.place == "x86" and op.precision == "int8" and _is_wide(program.parameters.get(op.weight or ""))
    ]
    if wide:
        yield (
            f"x86: {len(wide)} layers have weights outside of [-64, 63]; products are added in 16 bits and saturate "
            "(backends/x86/math/gemm_s8u8_kernel.cc): quantize with reduce_range"
        )


def _is_wide(weight: np.ndarray | None) -> bool:
    return weight is not None and weight.dtype == np.int8 and bool((weight > 63).any() or (weight < -64).any())
