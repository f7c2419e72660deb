"""Each rule for ONNX QDQ files fires on a damaged model and names the tensor; whole files have no findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ModelError
from fullquant.lint import lint, lint_onnx
from fullquant.numerics.qparams import symmetric
from fullquant.passes import prepare
from fullquant.placement.place import place
from fullquant.placement.target import find_target
from fullquant.readers import read_model
from fullquant.writers.onnx_qdq import build_onnx, write_onnx
from tests import graphs
from tests.lint.editing import calibrated, qdq_model
from tests.lint.test_paddle import MODELS, images
from tests.writers.paddle_oracle import minmax_qparams


@pytest.fixture
def model() -> ir.Model:
    return qdq_model(graphs.small_classifier(), images(8, 3, 8, 8))


def replace_constant(value: ir.Value | None, array: np.ndarray) -> str:
    """New content of an initializer; its name."""
    assert value is not None
    value.const_value = ir.Tensor(array, name=value.name)
    return str(value.name)


def content(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return np.array(value.const_value.numpy())


def behind_quantizer(model: ir.Model, index: int = 0) -> ir.Node:
    """A DequantizeLinear of an activation."""
    nodes = [n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].const_value is None]
    return nodes[index]


def layer(model: ir.Model, kind: str = "Conv") -> ir.Node:
    return next(n for n in model.graph if n.op_type == kind)


def test_a_clean_file_has_no_findings(model: ir.Model) -> None:
    assert lint_onnx(model) == []
    assert lint_onnx(qdq_model(graphs.small_classifier(), images(8, 3, 8, 8), "tensorrt")) == []


@pytest.mark.parametrize("layout", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", MODELS)
def test_files_of_real_networks_have_no_findings(assets: Path, name: str, layout: str) -> None:
    model = prepare(read_model(assets / "models" / name))
    assert lint_onnx(qdq_model(model, images(1, 3, *MODELS[name]), layout)) == []


def test_affine_grids(assets: Path) -> None:
    model = prepare(read_model(assets / "models" / "resnet20_cifar10"))
    placement, affine = place(model, "onnxruntime"), find_target("onnxruntime").activation
    qparams = calibrated(model, place(model, "paddle_lite"), images(1, 3, 32, 32))
    for name, params in qparams.items():
        if placement[name].kind == "activation":
            qparams[name] = replace(params, spec=affine, zero_point=np.asarray(127))
    assert lint_onnx(build_onnx(model, placement, qparams)) == []


def test_a_file_is_read(tmp_path: Path) -> None:
    graph = graphs.small_classifier()
    placement = place(graph, "paddle_lite")
    write_onnx(graph, placement, minmax_qparams(graph, placement, images(8, 3, 8, 8)), tmp_path / "m.onnx")
    assert lint(tmp_path / "m.onnx") == []
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        lint(tmp_path / "m.onnx")


# --- one damage for each rule ----------------------------------------------------------------------------------------

Damage = Callable[[ir.Model], str]


def computed_scale(model: ir.Model) -> str:
    node = behind_quantizer(model, 1)
    node.replace_input_with(1, layer(model).outputs[0])
    return str(layer(model).outputs[0].name)


def negative_scale(model: ir.Model) -> str:
    return replace_constant(behind_quantizer(model).inputs[1], np.float32(-0.5).reshape(()))


def scale_of_nan(model: ir.Model) -> str:
    scale = layer(model).inputs[1].producer().inputs[1]
    array = content(scale)
    array[-1] = np.nan
    return replace_constant(scale, array)


def no_zero_point(model: ir.Model) -> str:
    node = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    node.replace_input_with(2, None)
    return str(node.outputs[0].name)


def zero_point_of_weights(model: ir.Model) -> str:
    zero = layer(model).inputs[1].producer().inputs[2]
    return replace_constant(zero, np.full_like(content(zero), 3))


def zero_point_type(model: ir.Model) -> str:
    zero = layer(model).inputs[1].producer().inputs[2]
    return replace_constant(zero, content(zero).astype(np.uint8))


def few_zero_points(model: ir.Model) -> str:
    zero = layer(model).inputs[1].producer().inputs[2]
    return replace_constant(zero, content(zero)[:-1])


def another_scale_behind(model: ir.Model) -> str:
    node = behind_quantizer(model, 2)
    copy = ir.Value(name="copy", const_value=ir.Tensor(2 * content(node.inputs[1]), name="copy"))
    model.graph.register_initializer(copy)
    node.replace_input_with(1, copy)
    return str(node.outputs[0].name)


def another_zero_point_behind(model: ir.Model) -> str:
    node = behind_quantizer(model, 2)
    copy = ir.Value(name="copy", const_value=ir.Tensor(content(node.inputs[2]) + np.uint8(1), name="copy"))
    model.graph.register_initializer(copy)
    node.replace_input_with(2, copy)
    return str(node.outputs[0].name)


def dequantizer_of_nothing(model: ir.Model) -> str:
    node = behind_quantizer(model, 1)
    node.replace_input_with(0, model.graph.inputs[0])
    return str(model.graph.inputs[0].name)


def float_data(model: ir.Model) -> str:
    node = next(n for n in list(model.graph)[8:] if n.op_type == "Conv")
    before = node.inputs[0].producer().inputs[0].producer()
    while before.op_type != "QuantizeLinear":
        before = before.inputs[0].producer()
    node.replace_input_with(0, before.inputs[0])
    return str(before.inputs[0].name)


def float_output(model: ir.Model) -> str:
    node = layer(model, "Gemm")
    quantize = next(iter(node.outputs[0].uses())).node
    sigmoid = ir.node("Sigmoid", [node.outputs[0]])
    sigmoid.outputs[0].name = "between"
    model.graph.insert_before(quantize, sigmoid)
    quantize.replace_input_with(0, sigmoid.outputs[0])
    return str(node.outputs[0].name)


def axis_of_inputs(model: ir.Model) -> str:
    node = layer(model).inputs[1].producer()
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    return str(node.inputs[1].name)


def few_scales(model: ir.Model) -> str:
    node = layer(model).inputs[1].producer()
    replace_constant(node.inputs[2], content(node.inputs[2])[:-1])
    return replace_constant(node.inputs[1], content(node.inputs[1])[:-1])


def mixed_operands(model: ir.Model) -> str:
    node = layer(model, "Mul")
    quantize = node.inputs[1].producer()
    while quantize.op_type != "QuantizeLinear":
        quantize = quantize.inputs[0].producer()
    quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    node.inputs[1].producer().inputs[0].type = ir.TensorType(ir.DataType.INT8)
    return str(node.outputs[0].name)


def bias_at_another_scale(model: ir.Model) -> str:
    node = layer(model)
    scale = node.inputs[2].producer().inputs[1]
    replace_constant(scale, 3 * content(scale))
    return str(node.inputs[2].name)


def long_bias(model: ir.Model) -> str:
    node = layer(model)
    dequantizer = node.inputs[2].producer()
    replace_constant(dequantizer.inputs[0], np.zeros(content(dequantizer.inputs[0]).size + 1, np.int32))
    return str(node.inputs[2].name)


def bias_at_the_end_of_int32(model: ir.Model) -> str:
    node = layer(model)
    bias = node.inputs[2].producer().inputs[0]
    array = content(bias)
    array[1] = -(2**31) + 1
    replace_constant(bias, array)
    return str(node.inputs[2].name)


def moved_to_another_scale(model: ir.Model) -> str:
    node = layer(model, "Reshape")
    quantize = next(iter(node.outputs[0].uses())).node
    scale = quantize.inputs[1]
    copy = ir.Value(name="copy", const_value=ir.Tensor(2 * content(scale), name="copy"))
    model.graph.register_initializer(copy)
    quantize.replace_input_with(1, copy)
    for user in list(quantize.outputs[0].uses()):
        user.node.replace_input_with(1, copy)
    return str(node.outputs[0].name)


def _padded(model: ir.Model, kind: str, extra: list[ir.Value], attributes: dict[str, object]) -> str:
    """Puts an operator that pads floats and quantizers of the same grid between an activation and its readers."""
    data = behind_quantizer(model, 1)
    grid, values = list(data.inputs[1:3]), [data.outputs[0], *extra]
    pad = ir.node(kind, values, attributes, name="padding")
    again = ir.node("QuantizeLinear", [pad.outputs[0], *grid], name="again")
    back = ir.node("DequantizeLinear", [again.outputs[0], *grid], name="back")
    for node in (pad, again, back):
        node.outputs[0].name = f"{node.name}.out"
    readers = list(data.outputs[0].uses())
    model.graph.insert_after(data, [pad, again, back])
    for node, index in readers:
        node.replace_input_with(index, back.outputs[0])
    return "padding.out"


def float_pad(model: ir.Model) -> str:
    pads = ir.Value(name="pads", const_value=ir.Tensor(np.array([0, 1, 0, 0, 0, 0, 0, 0]), name="pads"))
    model.graph.register_initializer(pads)
    return _padded(model, "Pad", [pads], {})


def counted_padding(model: ir.Model) -> str:
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return _padded(model, "AveragePool", [], attributes)


DAMAGES: Mapping[str, tuple[str, Damage]] = {
    damage.__name__: (rule, damage)
    for rule, damage in (
        ("scale-constant", computed_scale), ("scale-value", negative_scale), ("scale-value", scale_of_nan),
        ("zero-point", no_zero_point), ("zero-point", zero_point_of_weights), ("zero-point", zero_point_type),
        ("zero-point", few_zero_points), ("pair", another_scale_behind), ("pair", another_zero_point_behind),
        ("pair", dequantizer_of_nothing), ("missing-scale", float_data), ("missing-scale", float_output),
        ("axis", axis_of_inputs), ("scale-shape", few_scales), ("operand-types", mixed_operands),
        ("bias-scale", bias_at_another_scale), ("bias-length", long_bias),
        ("int32-overflow", bias_at_the_end_of_int32), ("same-scale", moved_to_another_scale),
        ("padding", float_pad), ("padding", counted_padding),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_found_and_the_tensor_named(model: ir.Model, name: str) -> None:
    rule, damage = DAMAGES[name]
    variable = damage(model)
    found = lint_onnx(model)
    assert (rule, variable) in {(f.rule, f.variable) for f in found}, found


def test_a_float_bias_that_int32_cannot_hold_is_found() -> None:
    """TensorRT's layout has float biases; other runtimes round them to scale_x * scale_w."""
    model = qdq_model(graphs.small_classifier(), images(8, 3, 8, 8), "tensorrt")
    node = layer(model)
    array = content(node.inputs[2])
    array[0] = 1e9
    name = replace_constant(node.inputs[2], array)
    assert ("int32-overflow", name) in {(f.rule, f.variable) for f in lint_onnx(model)}


def test_a_vanishing_channel_is_the_case_of_issue_11415() -> None:
    """Weights that are almost 0 beside a bias that is not: the bias fits by a hair, the sums do not."""
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)
    weight[1] = 1e-7 * np.sign(weight[1])
    model = graphs.graph([("Conv", ["x", "w", "b"], ["y"], {})], {"w": weight, "b": np.ones(3, np.float32)})
    x = images(2, 3, 8, 8)
    placement = place(model, "paddle_lite")
    qparams = minmax_qparams(model, placement, x)
    scales = np.array(qparams["w"].scale)
    scales[1] = 1 / (float(qparams["x"].scale) * (2**31 - 1000))
    tight = {**qparams, "w": symmetric(qparams["w"].spec, scales)}
    (finding,) = lint_onnx(build_onnx(model, placement, tight))
    assert (finding.rule, "channel 1" in finding.message) == ("int32-overflow", True)
    assert lint_onnx(qdq_model(model, x)) == []  # with the floor that calibration has
