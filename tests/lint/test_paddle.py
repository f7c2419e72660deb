"""Each rule for Paddle files fires on a damaged file and names the variable; whole files have no findings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from fullquant.formats.framework_pb2 import BlockDesc, ProgramDesc
from fullquant.lint import Finding, lint
from fullquant.lint.lite_passes import fuse
from fullquant.passes import prepare
from fullquant.readers import read_model
from fullquant.readers.paddle_params import load_parameters
from fullquant.readers.program_desc import load_program
from tests import graphs
from tests.lint.editing import PaddleFile, paddle_file

MODELS = {
    "efficientnet_lite0_imagenet": (64, 64),
    "mobilenetv3_large_cifar10": (64, 64),
    "mobilenetv3_small_ocr_cls": (48, 64),
    "resnet20_cifar10": (32, 32),
    "resnet56_cifar10": (32, 32),
}
CONVERTER = os.environ.get("FULLQUANT_PADDLE_LITE_OPT") or shutil.which("paddle_lite_opt")


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """onnx_format -> a clean file."""
    found = {}
    for onnx_format in (True, False):
        folder = tmp_path_factory.mktemp(f"onnx_format_{onnx_format}")
        found[onnx_format] = paddle_file(folder, graphs.small_classifier(), images(8, 3, 8, 8), onnx_format=onnx_format)
    return found


def damaged(files: Mapping[bool, Path], onnx_format: bool, folder: Path) -> PaddleFile:
    for suffix in (".pdmodel", ".pdiparams"):
        shutil.copy(files[onnx_format].with_suffix(suffix), folder / f"m{suffix}")
    return PaddleFile(folder / "m.pdmodel")


# --- clean files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("onnx_format", [True, False])
def test_a_clean_file_has_no_findings(files: dict[bool, Path], onnx_format: bool) -> None:
    assert lint(files[onnx_format]) == []


@pytest.mark.parametrize("onnx_format", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_files_of_real_networks_have_no_findings(assets: Path, tmp_path: Path, name: str, onnx_format: bool) -> None:
    model = prepare(read_model(assets / "models" / name))
    path = paddle_file(tmp_path, model, images(1, 3, *MODELS[name]), onnx_format=onnx_format)
    assert lint(path) == []


def test_a_float_file_has_no_findings(assets: Path) -> None:
    assert lint(assets / "models" / "mobilenetv3_large_cifar10" / "inference.pdmodel") == []
    assert lint(assets / "models" / "mobilenetv3_large_cifar10" / "inference.json") == []


def test_paddleslims_files(assets: Path) -> None:
    """Its newer form has two scales around a reshape; Paddle Lite's kernels copy the integers."""
    (finding,) = lint(assets / "reference" / "format_a")
    assert (finding.rule, finding.variable) == ("same-scale", "reshape2_0.tmp_0")
    assert lint(assets / "reference" / "format_b") == []


# --- one damage for each rule ----------------------------------------------------------------------------------------

Damage = Callable[[PaddleFile], str]


def observer(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 2)
    file.set(op, "only_observer", True)
    return file.bound(op, "X")


def training(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 1)
    file.set(op, "is_test", False)
    return file.bound(op, "X")


def four_bits(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 1)
    file.set(op, "bit_length", 4)
    return file.bound(op, "X")


def computed_scale(file: PaddleFile) -> str:
    op, maker = file.op("quantize_linear", 2), file.op("relu")
    name = file.bound(maker, "Out")
    file.rebind(op, "Scale", name)
    return name


def zero_scale(file: PaddleFile) -> str:
    name = file.bound(file.op("quantize_linear", 1), "Scale")
    file.store(name, np.zeros(1, np.float32))
    return name


def infinite_scale(file: PaddleFile) -> str:
    name = file.bound(file.op("dequantize_linear", 1), "Scale")
    file.parameters[name].reshape(-1)[-1] = np.inf
    return name


def double_scale(file: PaddleFile) -> str:
    name = file.bound(file.op("quantize_linear", 1), "Scale")
    file.store(name, file.parameters[name].astype(np.float64))
    return name


def two_activation_scales(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 0)
    name = file.bound(op, "Scale")
    file.store(name, np.ones(2, np.float32))
    return file.bound(op, "X")


def weight_dequantizer(file: PaddleFile, kind: str, index: int = 0) -> tuple[object, str]:
    """The dequantize_linear in front of a layer's weights, and the weights."""
    layer = file.op(kind, index)
    behind = file.bound(layer, "Filter" if kind.endswith("conv2d") else "Y")
    op = next(o for o in file.ops if o.type == "dequantize_linear" and file.bound(o, "Y") == behind)
    return op, file.bound(op, "X")


def one_scale_too_few(file: PaddleFile) -> str:
    op, weight = weight_dequantizer(file, "conv2d")
    for parameter in ("Scale", "ZeroPoint"):
        name = file.bound(op, parameter)
        file.store(name, file.parameters[name][:-1])
    return weight


def convolution_axis(file: PaddleFile) -> str:
    op, weight = weight_dequantizer(file, "conv2d")
    file.set(op, "quant_axis", 1)
    return weight


def matrix_axis(file: PaddleFile) -> str:
    op, weight = weight_dequantizer(file, "matmul_v2")
    file.set(op, "quant_axis", 0)
    return weight


def activation_axis(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 1)
    file.set(op, "quant_axis", 0)
    return file.bound(op, "X")


def no_zero_point(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 1)
    file.unbind(op, "ZeroPoint")
    return file.bound(op, "X")


def zero_point_of_one(file: PaddleFile) -> str:
    name = file.bound(file.op("quantize_linear", 1), "ZeroPoint")
    file.parameters[name][:] = 1
    return name


def float_zero_point(file: PaddleFile) -> str:
    name = file.bound(file.op("dequantize_linear", 2), "ZeroPoint")
    file.store(name, file.parameters[name].astype(np.float32))
    return name


def short_zero_point(file: PaddleFile) -> str:
    op, _ = weight_dequantizer(file, "conv2d")
    name = file.bound(op, "ZeroPoint")
    file.store(name, np.zeros(1, np.int32))
    return name


def two_scale_variables(file: PaddleFile) -> str:
    """The copy has the same number, and yet the pattern of the fusion asks for one variable."""
    quantize = file.op("quantize_linear", 1)
    dequantize = file.reader("dequantize_linear", file.bound(quantize, "Y"))
    file.store("copy@scale", file.parameters[file.bound(quantize, "Scale")].copy())
    file.rebind(dequantize, "Scale", "copy@scale")
    return file.bound(quantize, "X")


def quantizer_alone(file: PaddleFile) -> str:
    quantize = file.op("quantize_linear", 1)
    dequantize = file.reader("dequantize_linear", file.bound(quantize, "Y"))
    readers = [o for o in file.ops for v in o.inputs if file.bound(dequantize, "Y") in v.arguments]
    for reader in readers:
        for variable in reader.inputs:
            variable.arguments[:] = [
                file.bound(quantize, "Y") if n == file.bound(dequantize, "Y") else n for n in variable.arguments
            ]
    file.remove(dequantize)
    return file.bound(quantize, "X")


def shared_weight_scale(file: PaddleFile) -> str:
    first, _ = weight_dequantizer(file, "conv2d", 1)
    second, _ = weight_dequantizer(file, "conv2d", 2)
    name = file.bound(first, "Scale")
    file.rebind(second, "Scale", name)
    return name


def shared_zero_point(file: PaddleFile) -> str:
    first, _ = weight_dequantizer(file, "conv2d", 1)
    second, _ = weight_dequantizer(file, "conv2d", 2)
    name = file.bound(first, "ZeroPoint")
    file.rebind(second, "ZeroPoint", name)
    return name


def unscaled_output(file: PaddleFile) -> str:
    """The product in front of its bias: no quantize_linear behind it, so out_threshold is its only scale."""
    op = file.op("conv2d")
    file.drop_attribute(op, "out_threshold")
    return file.bound(op, "Output")


def unscaled_input(file: PaddleFile) -> str:
    """The pair behind the gate is gone, and nobody states a threshold for that tensor."""
    gate = file.bound(file.op("elementwise_mul"), "Y")
    dequantize = file.maker(gate)
    quantize, front = file.maker(file.bound(dequantize, "X")), file.front_of(gate)
    maker = file.maker(front)
    for op in (file.op("elementwise_mul"), maker):  # the maker becomes float, so that no pass completes its output
        for variable in op.inputs:
            variable.arguments[:] = [file.front_of(name) for name in variable.arguments]
    file.drop_attribute(maker, "out_threshold")
    file.drop_attribute(file.maker(file.bound(maker, "X")), "out_threshold")
    file.remove(dequantize)
    file.remove(quantize)
    return front


def float_weight(file: PaddleFile) -> str:
    _, weight = weight_dequantizer(file, "conv2d")
    file.store(weight, file.parameters[weight].astype(np.float32) + np.float32(0.25))
    return weight


def lowest_weight(file: PaddleFile) -> str:
    _, weight = weight_dequantizer(file, "conv2d")
    file.parameters[weight].reshape(-1)[0] = -128
    return weight


def bias_of(file: PaddleFile) -> str:
    product = file.bound(file.op("conv2d"), "Output")
    return file.bound(next(o for o in file.ops if o.type == "elementwise_add" and file.bound(o, "X") == product), "Y")


def long_bias(file: PaddleFile) -> str:
    name = bias_of(file)
    file.store(name, np.zeros(file.parameters[name].size + 1, np.float32))
    return name


def large_bias(file: PaddleFile) -> str:
    name = bias_of(file)
    file.parameters[name][2] = 1e9
    return name


def double_bias(file: PaddleFile) -> str:
    name = bias_of(file)
    file.store(name, file.parameters[name].astype(np.float64))
    return name


def hard_swish_offset(file: PaddleFile) -> str:
    op = file.op("hard_swish")
    file.set(op, "offset", 2.5)
    return file.bound(op, "Out")


def scaled_integers(file: PaddleFile) -> str:
    op = file.op("quantize_linear", 2)
    name = file.bound(op, "X")
    file.retype(name, np.int64)
    return name


def moved_to_another_scale(file: PaddleFile) -> str:
    name = file.bound(file.op("reshape2"), "Out")
    file.parameters[file.bound(file.reader("quantize_linear", name), "Scale")][:] *= 2
    return name


NEWER: Mapping[str, tuple[str, Damage]] = {
    d.__name__: (rule, d)
    for rule, d in (
        ("observer", observer), ("training-mode", training), ("bit-length", four_bits),
        ("scale-constant", computed_scale),
        ("scale-value", zero_scale), ("scale-value", infinite_scale), ("scale-value", double_scale),
        ("scale-shape", two_activation_scales), ("scale-shape", one_scale_too_few), ("quant-axis", convolution_axis),
        ("quant-axis", matrix_axis), ("quant-axis", activation_axis), ("zero-point", no_zero_point),
        ("zero-point", zero_point_of_one), ("zero-point", float_zero_point), ("zero-point", short_zero_point),
        ("pair", two_scale_variables), ("pair", quantizer_alone), ("shared-scale", shared_weight_scale),
        ("shared-scale", shared_zero_point), ("missing-scale", unscaled_output), ("missing-scale", unscaled_input),
        ("weight-type", float_weight), ("weight-range", lowest_weight), ("bias-length", long_bias),
        ("bias-type", double_bias), ("int32-overflow", large_bias),
        ("hard-swish", hard_swish_offset), ("integer-scale", scaled_integers),
        ("same-scale", moved_to_another_scale),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", NEWER)
def test_a_damaged_file_is_found_and_the_variable_named(files: dict[bool, Path], tmp_path: Path, name: str) -> None:
    rule, damage = NEWER[name]
    file = damaged(files, True, tmp_path)
    variable = damage(file)
    found = lint(file.save())
    assert (rule, variable) in {(f.rule, f.variable) for f in found}, found
    assert any(variable in str(f) for f in found)


def older_shared_scale(file: PaddleFile) -> str:
    first, second = file.op("fake_quantize_moving_average_abs_max"), file.op("fake_quantize_moving_average_abs_max", 1)
    name = file.bound(first, "InScale")
    file.rebind(second, "InScale", name)
    return name


def older_training(file: PaddleFile) -> str:
    op = file.op("fake_quantize_moving_average_abs_max")
    file.set(op, "is_test", False)
    return file.bound(op, "X")


def older_bits(file: PaddleFile) -> str:
    op = file.op("fake_channel_wise_dequantize_max_abs")
    file.set(op, "quant_bits", [4, 8])
    return file.bound(op, "X")


def older_axis(file: PaddleFile) -> str:
    op = file.op("fake_channel_wise_dequantize_max_abs")
    file.set(op, "quant_axis", 1)
    return file.bound(op, "X")


def older_float_weight(file: PaddleFile) -> str:
    name = file.bound(file.op("conv2d"), "Filter")
    file.parameters[name] += np.float32(0.5)
    return name


def older_few_scales(file: PaddleFile) -> str:
    op = file.op("fake_channel_wise_dequantize_max_abs")
    name = file.bound(op, "Scales")
    file.store(name, file.parameters[name][:-1])
    return file.bound(file.op("conv2d"), "Filter")


def older_dequantizer_elsewhere(file: PaddleFile) -> str:
    op = file.op("fake_channel_wise_dequantize_max_abs")
    name = file.bound(file.op("hard_swish"), "Out")
    file.rebind(op, "X", name)
    return name


def older_missing(file: PaddleFile) -> str:
    """A bias that states no threshold, behind which nothing is rounded: the layer's output has no scale."""
    op = file.op("conv2d")
    file.drop_attribute(op, "out_threshold")
    return file.bound(file.op("fake_channel_wise_dequantize_max_abs"), "Out")


OLDER: Mapping[str, tuple[str, Damage]] = {
    d.__name__: (rule, d)
    for rule, d in (
        ("shared-scale", older_shared_scale), ("training-mode", older_training), ("bit-length", older_bits),
        ("quant-axis", older_axis), ("weight-type", older_float_weight), ("scale-shape", older_few_scales),
        ("pair", older_dequantizer_elsewhere), ("missing-scale", older_missing),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_a_damaged_file_of_the_older_form(files: dict[bool, Path], tmp_path: Path, name: str) -> None:
    rule, damage = OLDER[name]
    file = damaged(files, False, tmp_path)
    variable = damage(file)
    found = lint(file.save())
    assert (rule, variable) in {(f.rule, f.variable) for f in found}, found


def test_a_finding_says_rule_variable_operator_and_what() -> None:
    finding = Finding("zero-point", "x@zero", "quantize_linear 'x.quantized'", "ZeroPoint is not 0")
    assert str(finding) == "zero-point: 'x@zero' (quantize_linear 'x.quantized'): ZeroPoint is not 0"
    with pytest.raises(ValueError, match="a rule, a variable"):
        Finding("", "x", "", "m")


# --- the replay against Paddle Lite itself ---------------------------------------------------------------------------


@pytest.mark.skipif(CONVERTER is None, reason="paddle_lite_opt is not on PATH (pip install paddlelite)")
@pytest.mark.parametrize("onnx_format", [True, False])
def test_the_replayed_passes_give_the_scales_of_paddle_lite(
    files: dict[bool, Path], tmp_path: Path, onnx_format: bool
) -> None:
    path, out = files[onnx_format], tmp_path / "lite"
    command = [str(CONVERTER), f"--model_file={path}", f"--param_file={path.with_suffix('.pdiparams')}"]
    command += ["--valid_targets=verisilicon_timvx,arm", "--optimize_out_type=protobuf", f"--optimize_out={out}"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = [op for block in ProgramDesc.FromString((out / "model").read_bytes()).blocks[1:] for op in _scales(block)]
    program = load_program(path)
    fused = fuse(program, load_parameters(path.with_suffix(".pdiparams"), program.parameters))
    ours = {(step.op.type, next(iter(step.outputs.values()))[0]): step for step in fused.steps}
    assert len(theirs) == len(ours)
    compared = 0
    for kind, output, scales in theirs:
        step = ours[kind, output]
        for attribute, values in scales.items():
            parameter, index = attribute.removesuffix("_scale")[:-1], int(attribute.removesuffix("_scale")[-1])
            known = step.in_scales if parameter in step.inputs else step.out_scales
            name = (step.inputs.get(parameter) or step.outputs[parameter])[index]
            assert np.allclose(known[name], values, rtol=1e-6), (kind, output, attribute)
            compared += 1
    assert compared > 3 * len(theirs) // 2


def _scales(block: BlockDesc) -> list[tuple[str, str, dict[str, list[float]]]]:
    """(kind, first output, the attributes that are scales) of each operator."""
    found = []
    for op in block.ops:
        outputs = {v.parameter: list(v.arguments) for v in op.outputs if v.arguments}
        first = next(outputs[p] for p in ("Out", "Output", "Y") if p in outputs)[0]
        scales = {a.name: list(a.floats) for a in op.attrs if a.name.endswith("_scale") and a.floats}
        found.append((op.type, first, scales))
    return found
