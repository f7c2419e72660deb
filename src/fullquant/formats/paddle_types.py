"""Paddle's element types: numbers in the program format, names in PIR, and the NumPy types they stand for."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from fullquant.formats.framework_pb2 import VarType

# (number in VarType.Type, NumPy type, short name in PIR types, long name in PIR attributes)
_TYPES: tuple[tuple[VarType.Type, np.dtype, str, str], ...] = (
    (VarType.BOOL, np.dtype(np.bool_), "t_bool", "bool"),
    (VarType.UINT8, np.dtype(np.uint8), "t_ui8", "uint8"),
    (VarType.INT8, np.dtype(np.int8), "t_i8", "int8"),
    (VarType.INT16, np.dtype(np.int16), "t_i16", "int16"),
    (VarType.INT32, np.dtype(np.int32), "t_i32", "int32"),
    (VarType.INT64, np.dtype(np.int64), "t_i64", "int64"),
    (VarType.UINT16, np.dtype(np.uint16), "t_ui16", "uint16"),
    (VarType.UINT32, np.dtype(np.uint32), "t_ui32", "uint32"),
    (VarType.UINT64, np.dtype(np.uint64), "t_ui64", "uint64"),
    (VarType.FP16, np.dtype(np.float16), "t_f16", "float16"),
    (VarType.BF16, np.dtype(ml_dtypes.bfloat16), "t_bf16", "bfloat16"),
    (VarType.FP32, np.dtype(np.float32), "t_f32", "float32"),
    (VarType.FP64, np.dtype(np.float64), "t_f64", "float64"),
    (VarType.FP8_E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), "t_f8e4m3fn", "float8_e4m3fn"),
    (VarType.FP8_E5M2, np.dtype(ml_dtypes.float8_e5m2), "t_f8e5m2", "float8_e5m2"),
)

DTYPE_OF_NUMBER: dict[int, np.dtype] = {int(number): dtype for number, dtype, _, _ in _TYPES}
NUMBER_OF_DTYPE: dict[np.dtype, VarType.Type] = {dtype: number for number, dtype, _, _ in _TYPES}
PIR_NAMES_OF_DTYPE: dict[np.dtype, tuple[str, str]] = {dtype: (short, long) for _, dtype, short, long in _TYPES}
DTYPE_OF_PIR_NAME: dict[str, np.dtype] = {name: dtype for _, dtype, short, long in _TYPES for name in (short, long)}
