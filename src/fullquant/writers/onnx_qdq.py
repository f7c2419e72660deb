"""The quantized model as ONNX with QuantizeLinear and DequantizeLinear, and the float model as ONNX.

What ONNX Runtime's CPU provider needs to run a node in integers, found by trying (version 1.32) and kept by the tests:
- Conv, Gemm, Add, Mul, pooling and Concat are replaced by their integer kernels if every tensor that they read comes
  from a DequantizeLinear and the one that they write goes to QuantizeLinear alone. Any node in between, a Relu too,
  leaves them in float.
- Relu and Clip in that place are dropped only where the grid itself ends at their bounds. A symmetric grid goes on
  below 0. Here they are therefore written behind QuantizeLinear, as Clip of the integers. Rounding to a grid is
  monotone, so clip(x) rounded is exactly x rounded and then clipped at the rounded bounds.
- Both operands of Add and Mul have one integer type, so constant operands are stored in the activations' type. Weights
  may be int8 beside uint8 activations, the pair that has the fast kernels.
- The bias of Conv and Gemm is int32 at scale_x * scale_w.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.graph.copying import copied
from fullquant.graph.edit import SOURCE
from fullquant.graph.verify import verify
from fullquant.numerics.qparams import QParams
from fullquant.placement.decision import Placement
from fullquant.writers.atomic import refuse_source_files, write_atomically
from fullquant.writers.onnx_constants import StorageType
from fullquant.writers.onnx_opset import finish
from fullquant.writers.onnx_resize import resize_by_factors
from fullquant.writers.qdq_builder import Layout, QdqBuilder
from fullquant.writers.wide_norms import split_wide_norms

Runtime = Literal["onnxruntime", "openvino", "tensorrt"]

#: One protobuf message holds at most 2 GiB.
_MAX_BYTES = 2**31 - 1


LAYOUTS: Mapping[Runtime, Layout] = {
    "onnxruntime": Layout(
        integer_clamp=True, int32_bias=True, zero_point_free=False, storage="uint8", norms_in_parts=True
    ),
    # OpenVINO fuses float clamps into the layer, and a clamp of integers only now and then; zero points cost it time
    # (decision 0018).
    "openvino": Layout(integer_clamp=False, int32_bias=True, zero_point_free=False, storage=None),
    # TensorRT allows Q and DQ in pairs only, with zero points 0, and no integer constants but int8.
    "tensorrt": Layout(integer_clamp=False, int32_bias=False, zero_point_free=True, storage="int8"),
}


def write_onnx(
    model: ir.Model,
    placement: Placement,
    qparams: Mapping[str, QParams],
    path: str | os.PathLike[str],
    *,
    weight_type: StorageType = "int8",
    activation_type: StorageType | None = None,
    runtime: Runtime = "onnxruntime",
) -> None:
    """Writes the QDQ model, see build_onnx. The file appears whole or not at all. Raises ExportError."""
    refuse_source_files(model.metadata_props.get(SOURCE), path)
    built = build_onnx(
        model, placement, qparams, weight_type=weight_type, activation_type=activation_type, runtime=runtime
    )
    _save(built, path)


def write_float_onnx(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Writes the float model as it is, in the lowest operator set that it needs. Raises ExportError."""
    refuse_source_files(model.metadata_props.get(SOURCE), path)
    copy = copied(model)
    resize_by_factors(copy.graph)
    finish(copy)
    _save(copy, path)


def build_onnx(
    model: ir.Model,
    placement: Placement,
    qparams: Mapping[str, QParams],
    *,
    weight_type: StorageType = "int8",
    activation_type: StorageType | None = None,
    runtime: Runtime = "onnxruntime",
) -> ir.Model:
    """The QDQ form of a canonical graph as a new model; the argument is left untouched.

    Every placed activation t becomes t -> QuantizeLinear -> DequantizeLinear -> readers, weights integers ->
    DequantizeLinear. Tensors that are `fused` have neither. The model's inputs and outputs keep their names and stay
    float32. Computed node by node in float, the file is the simulation: the integer forms are the runtime's business.

    weight_type: storage of the weights of Conv, Gemm and MatMul; uint8 holds q + 128.
    activation_type: storage of activations; by default uint8 (q + 128 for a signed grid), for OpenVINO that of each
        grid, for TensorRT int8.
    Raises ExportError where the placement cannot be expressed, or a bias exceeds 32 bits; the message names the tensor.
    """
    layout = LAYOUTS[runtime]
    storage = activation_type or layout.storage
    if layout.zero_point_free and (storage != "int8" or weight_type != "int8"):
        raise ExportError(
            f"{runtime} takes int8 with zero point 0 only; leave weight_type and activation_type as they are"
        )
    copy = copied(model)
    resize_by_factors(copy.graph)
    if layout.norms_in_parts:
        split_wide_norms(copy.graph)
    QdqBuilder(copy.graph, placement, qparams, layout, storage, weight_type).build()
    finish(copy)
    copy.metadata_props["fullquant.target"] = placement.target
    verify(copy)
    return copy


def _save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    proto = ir.to_proto(model)
    if proto.ByteSize() > _MAX_BYTES:
        raise ExportError(f"{path} would exceed 2 GiB, the limit of one ONNX file; quantize a smaller model")
    write_atomically(path, proto.SerializeToString())
