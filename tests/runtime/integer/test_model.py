"""The integer model as a whole: real networks, tensors that stay float, and that every check of it can fail."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fullquant.data.textlines import text_line
from fullquant.errors import EngineError, ModelError
from fullquant.evaluation.tensors import TensorComparison
from fullquant.graph.edit import constant_value, set_initializer
from fullquant.numerics.integer import common_fixed_point, fixed_point, requantize, weighted_sum
from fullquant.numerics.qparams import QParams, QuantSpec
from fullquant.readers import read_model
from fullquant.runtime.integer import IntegerModel, IntegerTensor, linear
from fullquant.runtime.integer.linear import EXACT_FLOAT32, parts
from fullquant.runtime.kernels.requantize import requantize_product, requantize_rows, requantize_sum
from tests.runtime.integer.models import Placed, operator, placed
from tests.writers.qdq_models import GRAPHS, toy

# --- whole networks -----------------------------------------------------------------------------------------------


def lines(count: int) -> np.ndarray:
    """Rendered text lines as PaddleOCR's classifier wants them: height 48, at most 192 wide, zeros on the right."""
    made = np.zeros((count, 3, 48, 192), np.float32)
    for index in range(count):
        image = Image.open(io.BytesIO(text_line("val", index)[0])).convert("RGB")
        width = min(192, max(1, round(image.width * 48 / image.height)))
        pixels = np.asarray(image.resize((width, 48)), np.float32) / 127.5 - 1
        made[index, :, :, :width] = pixels.transpose(2, 0, 1)
    return made


@pytest.mark.parametrize("target", ["paddle_lite", "onnxruntime"])
def test_the_text_line_classifier_is_the_simulation(ocr_model_dir: Path, target: str) -> None:
    model = read_model(ocr_model_dir, input_shape={"x": (-1, 3, 48, 192)})
    images = lines(12)
    one = placed(model, target, images=images[:8])
    integer = one.integer()
    comparison = one.compare(integer, images)
    rows = comparison.rows()
    assert integer.float_nodes == ()
    assert len(rows) == len(integer.placed()) == 111
    assert comparison.first_departure() is None
    for row in rows:
        assert row.beyond_share <= 0.001, row
        assert row.equal_share >= 0.99, row


@pytest.mark.parametrize("name", ["resnet20_cifar10", "mobilenetv3_large_cifar10", "efficientnet_lite0_imagenet"])
def test_the_other_networks_are_the_simulation(assets: Path, name: str) -> None:
    model = read_model(assets / "models" / name)
    size = {"resnet20_cifar10": 32, "mobilenetv3_large_cifar10": 64, "efficientnet_lite0_imagenet": 224}[name]
    images = np.random.default_rng(2).normal(0, 1, (2, 3, size, size)).astype(np.float32)
    one = placed(model, images=images)
    assert one.integer().float_nodes == ()
    assert one.compare(images=images).first_departure() is None


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("options", [{"reduce_range": True}, {"per_channel": False}, {"scale_grid": "free"}], ids=str)
def test_small_networks(name: str, options: dict[str, Any]) -> None:
    comparison = placed(toy(name), **options).compare()
    assert comparison.first_departure() is None


# --- what stays float ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "node", "reason"),
    [
        ({"skip_patterns": ("conv_2",)}, "conv_2", "reads 'r0', which stays float"),
        ({"skip_patterns": ("relu",)}, "relu_1", "reads 'c0', which stays float"),
        ({"full": False}, "conv_0", "its output stays float"),
        ({"full": False}, "maxpool_7", "reads 'r3', which stays float"),
    ],
    ids=str,
)
def test_what_stays_float_is_computed_in_float_and_named(options: dict[str, Any], node: str, reason: str) -> None:
    one = placed(toy("residual"), **options)
    integer = one.integer()
    reasons = {found.node: found.reason for found in integer.float_nodes}
    assert reason in reasons[node]
    assert integer.integer_nodes + len(reasons) < len(list(one.model.graph)) + 1
    assert one.compare(integer).first_departure() is None
    np.testing.assert_allclose(integer.predict(one.images), one.simulated().predict(one.images), atol=1e-5)


def test_a_layer_with_a_float_output_keeps_its_clamp() -> None:
    """Two readers, one of them float: the clamped output is needed as integers and as numbers."""
    one = placed(toy("residual"), skip_patterns=("conv_3",))
    integer = one.integer()
    assert {f.node for f in integer.float_nodes} >= {"conv_0", "conv_3"}
    found = integer.tensors(one.images, keep=("r0",))["r0"]
    assert isinstance(found, IntegerTensor)
    assert found.centred().min() == 0
    assert one.compare(integer).first_departure() is None


def test_a_function_on_the_sums_is_computed_in_float_and_named() -> None:
    """OpenVINO's convolutions take HardSwish in: exact sums, the function in float, one rounding."""
    one = placed(toy("mobile"), "openvino")
    assert one.placement["c0"].fused
    integer = one.integer()
    assert [(f.node, f.reason) for f in integer.float_nodes] == [
        ("conv_0", "HardSwish is computed in float on its sums, as on the target")
    ]
    comparison = one.compare(integer)
    assert comparison.first_departure() is None
    assert {row.tensor: row for row in comparison.rows()}["h0"].equal_share > 0.999


def test_an_unknown_tensor_is_named() -> None:
    one = operator("add")
    with pytest.raises(ModelError, match="no tensor 'z'"):
        one.integer().tensors(one.images, keep=("z",))


def test_a_missing_scale_is_named() -> None:
    one = operator("add")
    qparams = {name: grid for name, grid in one.qparams.items() if name != "a"}
    with pytest.raises(ModelError, match="'a' is placed in integers but has no scale"):
        IntegerModel(one.model, one.placement, qparams)


# --- the checks can fail ------------------------------------------------------------------------------------------


def test_a_wrong_weight_is_found_where_it_is(ocr_model_dir: Path) -> None:
    """One weight of one layer moved by one step, in the integer model only."""
    model = read_model(ocr_model_dir, input_shape={"x": (-1, 3, 48, 192)})
    images = lines(4)
    one = placed(model, images=images)
    changed = Placed(ir.from_proto(ir.to_proto(one.model)), one.placement, one.qparams, images)
    layer = next(n for n in changed.model.graph if n.name == "conv2d_6")
    weight = layer.inputs[1]
    assert weight is not None
    array = np.array(constant_value(weight))
    array[0] += 2 * one.qparams[str(weight.name)].scale[0]
    set_initializer(weight, np.clip(array, -127 * one.qparams[str(weight.name)].scale[0], None))
    departure = one.compare(changed.integer(), images).first_departure(beyond=0.0)
    assert departure is not None
    before = list(changed.integer().placed())
    assert before.index(departure.tensor) >= before.index(str(layer.outputs[0].name))
    assert before.index(departure.tensor) <= before.index(str(layer.outputs[0].name)) + 2


def test_sums_that_are_no_integers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes a convolution by a transform would give such."""
    real = linear.build_operation
    monkeypatch.setattr(linear, "build_operation", lambda node: lambda x, w: real(node)(x, w) + 0.25)
    one = operator("conv")
    with pytest.raises(EngineError, match="node 'conv_0': the library's sums are no integers"):
        one.integer().predict(one.images)


int32 = st.integers(-(2**31), 2**31 - 1)


@settings(deadline=None)  # the first call compiles
@given(st.lists(int32, min_size=3, max_size=3), st.lists(st.floats(1e-9, 100), min_size=3, max_size=3))
def test_the_compiled_requantization_is_the_reference(values: list[int], factors: list[float]) -> None:
    sums = np.asarray([values, [-v for v in values]])
    factor = fixed_point(factors)
    out = np.zeros(sums.shape, np.int8)
    bias = np.asarray([0, 1, -1])
    broken, beyond = requantize_rows(
        sums, bias, np.array(factor.multiplier), np.array(factor.shift), factor.exact, 3, -100, 120, out
    )
    total = sums + bias
    np.testing.assert_array_equal(out, np.clip(requantize(total, factor) + 3, -100, 120))
    assert broken == 0
    assert beyond == int(((total > 2**31 - 1) | (total < -(2**31))).sum())


eight_bits = st.integers(-128, 127)
factor_sizes = st.floats(1e-3, 30) | st.sampled_from([1.0, 0.5, 2 / 3, 4 / 3])


@settings(deadline=None)
@given(st.lists(st.tuples(eight_bits, eight_bits), min_size=4, max_size=4), factor_sizes, factor_sizes, st.booleans())
def test_the_compiled_sum_is_the_reference(pairs: list[tuple[int, int]], f: float, g: float, minus: bool) -> None:
    a, b = np.asarray(pairs, np.int8).T
    factors = (f, -g if minus else g)
    multipliers, shift = common_fixed_point(factors)
    exact = all(m == x * 2.0**shift for m, x in zip(multipliers, factors, strict=True))
    out = np.zeros(4, np.int8)
    terms = ((np.ascontiguousarray(a), 2), (np.ascontiguousarray(b), -3))
    requantize_sum(terms, (multipliers[0], multipliers[1]), shift, exact, 5, -120, 100, out)
    expected = weighted_sum([(a.astype(np.int64) - 2, factors[0]), (b.astype(np.int64) + 3, factors[1])])
    np.testing.assert_array_equal(out, np.clip(expected + 5, -120, 100))


@settings(deadline=None)
@given(st.integers(0, 2**31), factor_sizes, st.booleans())
def test_the_compiled_product_is_the_reference(seed: int, size: float, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (2, 3, 4)).astype(np.uint8)
    b = rng.integers(0, 256, (2, 3 if whole else 1, 4)).astype(np.uint8)
    factor, out = fixed_point(size / 256), np.zeros(a.shape, np.uint8)
    requantize_product(a, 7, b, 130, int(factor.multiplier), int(factor.shift), factor.exact, 128, 0, 250, out)
    expected = requantize((a.astype(np.int64) - 7) * (b.astype(np.int64) - 130), factor)
    np.testing.assert_array_equal(out, np.clip(expected + 128, 0, 250))


def test_the_compiled_requantization_counts() -> None:
    sums = np.full((200, 2), 5.0)
    sums[150, 1] = 5.5
    sums[77, 0] = 2.0**31
    factor = fixed_point([0.5, 0.5])
    out = np.zeros(sums.shape, np.uint8)
    found = requantize_rows(sums, np.zeros(2, np.int64), factor.multiplier, factor.shift, True, 0, 0, 255, out)
    assert found == (1, 1)
    assert out[0, 0] == 2


@given(st.integers(0, 2**31), st.sampled_from([255, 128]), st.integers(1, 600))
def test_parts_stay_below_float32s_integers(seed: int, largest: int, channels: int) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, (4, channels, 5, 5))
    cuts = parts(weight, largest)
    assert [c.start for c in cuts] == [0, *(c.stop for c in cuts[:-1])]
    assert cuts[-1].stop == channels
    for cut in cuts:
        assert np.abs(weight[:, cut]).sum(axis=(1, 2, 3)).max() * largest < EXACT_FLOAT32


# --- the comparison -----------------------------------------------------------------------------------------------

GRID = QParams(QuantSpec(-128, 127), np.float32(0.5), np.int64(0))


def test_the_comparison_counts_steps() -> None:
    comparison = TensorComparison({"a": GRID, "b": GRID, "c": GRID})
    expected = np.zeros((10, 100), np.float32)
    actual = expected.copy()
    actual[0, :5] = [0.5, -0.5, 1.0, -2.0, 0.2]  # 0.2 rounds to 0
    comparison.update({"a": expected, "b": expected}, {"a": expected, "b": actual})
    comparison.update({"b": expected, "c": expected}, {"b": expected, "c": actual})
    first, second, third = comparison.rows()
    assert (first.elements, first.equal, first.beyond, first.largest) == (1000, 1000, 0, 0)
    assert (second.elements, second.equal, second.beyond, second.largest) == (2000, 1996, 2, 4)
    assert second.beyond_share == 0.001
    departure = comparison.first_departure()
    assert departure == third, "exactly a thousandth is still within"
    assert comparison.first_departure(beyond=0.01) is None
    assert comparison.first_departure(beyond=0.01, steps=3) == second
    assert comparison.worst() == third


def test_the_comparison_wants_equal_shapes() -> None:
    with pytest.raises(ValueError, match="'a' has the shapes"):
        TensorComparison({"a": GRID}).update({"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2))})
