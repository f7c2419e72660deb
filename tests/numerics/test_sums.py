"""Sums of two tensors: where `rounds_alike` says so, a kernel with float32 ratios rounds as the file does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fullquant.numerics.qparams import ACTIVATION_MANTISSAS, WEIGHT_MANTISSAS
from fullquant.numerics.sums import rounds_alike

Reals = npt.NDArray[np.float32]
_A, _B = (grid.ravel().astype(np.float32) for grid in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
SCALES = st.builds(
    lambda mantissa, exponent: mantissa * 2.0**exponent, st.sampled_from(WEIGHT_MANTISSAS), st.integers(-6, 2)
)


def file(a: float, b: float, out: float) -> Reals:
    """rint((q_a a + q_b b) / out) of all pairs of int8, as QuantizeLinear computes it."""
    f = np.float32
    return np.clip(np.rint((_A * f(a) + _B * f(b)) / f(out)), -128, 127)


def kernel(a: float, b: float, out: float) -> Reals:
    """With uint8 of zero point 128, ratios in float32 and the zero points in one constant."""
    f = np.float32
    ratio_a, ratio_b = f(a) / f(out), f(b) / f(out)
    constant = f(128) - f(128) * (ratio_a + ratio_b)
    return np.clip(np.rint(((_A + 128) * ratio_a + constant) + (_B + 128) * ratio_b), 0, 255) - 128


@given(SCALES, SCALES, st.sampled_from(ACTIVATION_MANTISSAS))
def test_what_agrees_is_rounded_alike(a: float, b: float, out: float) -> None:
    if rounds_alike(a, b, out):
        np.testing.assert_array_equal(kernel(a, b, out), file(a, b, out))


@given(SCALES, SCALES, st.integers(-3, 3))
def test_powers_of_two_agree(a: float, b: float, exponent: int) -> None:
    assert rounds_alike(a, b, 2.0**exponent)


def test_the_others_differ_nearly_all() -> None:
    """The rule is not stricter than it must be: of the combinations that it refuses most do go wrong."""
    steps = [m * 2.0**e for m in ACTIVATION_MANTISSAS for e in (-2, -1, 0)]
    refused = [(a, b, out) for a in steps for b in steps for out in (1.125, 1.5) if not rounds_alike(a, b, out)]
    wrong = [scales for scales in refused if np.any(kernel(*scales) != file(*scales))]
    assert len(refused) > 30
    assert len(wrong) > 0.8 * len(refused)


@pytest.mark.parametrize(
    "scales", [(1.0, 0.5, 1.5), (0.75, 0.5, 1.125), (1.0, 0.5, 1.125), (1.0, 0.25, 1.5), (1, 1, 2)]
)
def test_onnxruntime_is_such_a_kernel(scales: tuple[float, float, float]) -> None:
    different = np.mean(_onnxruntime(*scales) != file(*scales))
    assert (different == 0) == rounds_alike(*scales), different
    assert different < 0.05


def _onnxruntime(a: float, b: float, out: float) -> Reals:
    names = [("scale_a", a), ("scale_b", b), ("scale", out)]
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in names]
    constants.append(numpy_helper.from_array(np.uint8(128), "zero"))
    node = helper.make_node(
        "QLinearAdd", ["a", "scale_a", "zero", "b", "scale_b", "zero", "scale", "zero"], ["c"], domain="com.microsoft"
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, [_A.size]) for name in "ab"]
    outputs = [helper.make_tensor_value_info("c", TensorProto.UINT8, [_A.size])]
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "sum", inputs, outputs, constants)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"a": (_A + 128).astype(np.uint8), "b": (_B + 128).astype(np.uint8)}
    return np.asarray(session.run(None, feeds)[0].astype(np.float32) - 128)
