"""Every operator rule against PaddlePaddle itself, in both program formats."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from fullquant.errors import ModelError, UnsupportedOperatorError
from fullquant.formats.framework_pb2 import ProgramDesc, VarType
from fullquant.formats.paddle_types import NUMBER_OF_DTYPE
from fullquant.formats.param_stream import read_combined, write_combined
from fullquant.graph.verify import verify
from fullquant.passes import prepare
from fullquant.readers import paddle_ops, read_model
from fullquant.readers.onnx_tensors import CONVERTED_FROM
from fullquant.readers.paddle_ops import LEGACY, PIR
from fullquant.readers.paddle_ops.context import OpContext
from fullquant.readers.paddle_ops.contract import contract_of
from fullquant.readers.pir import load_pir_program
from fullquant.readers.program import AttrValue
from fullquant.readers.program_desc import load_program
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.sessions import open_session
from fullquant.writers.paddle_builder import PaddleProgram
from fullquant.writers.pir import pir_json
from fullquant.writers.program_desc import write_paddle
from tests.readers.onnx_run import run
from tests.readers.paddle_cases import CASES, LEGACY_CASES
from tests.readers.paddle_groups import GROUPS, LEGACY_GROUPS
from tests.readers.programs import Call, unary, write_program

FORMS = {"legacy": "0", "pir": "1"}


@pytest.fixture(scope="session")
def paddle_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the programs of paddle_cases, <form>/<case>; made by PaddlePaddle in processes of its own."""
    if importlib.util.find_spec("paddle") is None:
        pytest.skip("PaddlePaddle is not installed (pip install 'fullquant[paddle]')")
    folder = tmp_path_factory.mktemp("paddle_programs")
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.readers.paddle_programs", str(folder / form), form],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "FLAGS_enable_pir_api": flag, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for form, flag in FORMS.items()
    ]
    for child in running:
        log, _ = child.communicate(timeout=300)
        assert child.returncode == 0, log[-2000:]
    return folder


def _all_cases() -> list[tuple[str, str]]:
    return [("legacy", case) for case in (*CASES, *LEGACY_CASES)] + [("pir", case) for case in CASES]


@pytest.mark.parametrize(("form", "case"), _all_cases())
def test_equals_paddle(paddle_programs: Path, form: str, case: str) -> None:
    folder = paddle_programs / form / case
    model = read_model(folder)
    verify(model)
    with np.load(folder / "data.npz") as data:
        x, expected = data["x"], data["y"]
    actual = run(model, x)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    _check_declared_shape(model, actual.shape)


def _check_declared_shape(model: ir.Model, shape: tuple[int, ...]) -> None:
    declared = model.graph.outputs[0].shape
    assert declared is not None
    assert len(declared) == len(shape)
    assert all(dim == size for dim, size in zip(declared, shape, strict=True) if isinstance(dim, int))


def _round_trips() -> list[tuple[str, str]]:
    """Groups of many results, and some that have parameters: Paddle 3 loads no program without."""
    alone = ("attention", "layer_norm", "batch_norm", "addmm", "mul_rows")
    both = [("legacy", case) for case in (*GROUPS, *LEGACY_GROUPS, *alone)]
    return [*both, *(("pir", case) for case in (*GROUPS, *(case for case in alone if case in CASES)))]


@pytest.mark.parametrize(("form", "case"), _round_trips())
def test_is_simulated_and_written_back(paddle_programs: Path, tmp_path: Path, form: str, case: str) -> None:
    """Paddle -> graph -> PyTorch, Paddle program and Paddle 3 program: what Paddle computed, to 1e-4."""
    with np.load(paddle_programs / form / case / "data.npz") as data:
        x, expected = data["x"], data["y"]
    model = prepare(read_model(paddle_programs / form / case, input_shape={"x": list(x.shape)}))
    with torch.no_grad():
        simulated = GraphModule(model)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(simulated, expected, rtol=1e-4, atol=1e-4)
    paths = [tmp_path / f"m.{suffix}" for suffix in ("pdmodel", "json")]
    write_paddle(model, None, {}, paths[0], tmp_path / "m.pdiparams", json_path=paths[1])
    for path in paths:
        # Paddle Inference 3.3.1 crashes in a fusion (seqpool_cvm_concat_fuse_pass) on some of the legacy programs
        (actual,) = open_session(path, "paddle", threads=1, optimize=False).run({"x": x})
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "case"), _all_cases())
def test_rules_do_what_their_contracts_say(paddle_programs: Path, form: str, case: str) -> None:
    """The nodes and attributes of every case are among those that docs/operators.md gives for the operator."""
    read: dict[str, set[str]] = {}

    class Recorder(OpContext):
        def attr(self, name: str) -> AttrValue:
            read.setdefault(self.op.type, set()).add(name)
            return super().attr(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paddle_ops, "OpContext", Recorder)
        model = read_model(paddle_programs / form / case)
    made: dict[str, set[str]] = {}
    for node in model.graph:
        made.setdefault(node.metadata_props["fullquant.op_type"], set()).add(node.op_type)
    # numbers that the program computes are cast and put together (OpContext.integers_or_value), copies named
    everywhere = {"Cast", "Concat", "Reshape", "Identity"}
    for kind, names in read.items():
        assert names <= set(contract_of(LEGACY[kind].rule).attributes), kind
    for kind, operators in made.items():
        assert operators <= set(contract_of(LEGACY[kind].rule).onnx) | everywhere, kind


def _rounded(folder: Path, out: Path, kind: str) -> Path:
    """The program with every float32 in 16 bits, image and parameters too, as an export for GPUs has it."""
    (path,) = (p for p in folder.iterdir() if p.suffix in (".pdmodel", ".json"))
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    out.mkdir()
    names = [
        variable.name for variable in (load_pir_program if path.suffix == ".json" else load_program)(path).parameters
    ]
    arrays = read_combined(folder / "model.pdiparams", names)
    with (out / "model.pdiparams").open("wb") as stream:
        write_combined(stream, {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in arrays.items()})
    if path.suffix == ".json":
        short = {"float16": "t_f16", "bfloat16": "t_bf16"}[kind]
        text = path.read_text().replace("t_f32", short).replace('"float32"', f'"{kind}"')
        (out / path.name).write_text(text)
        return out
    program = ProgramDesc.FromString(path.read_bytes())
    for var in program.blocks[0].vars:
        tensor = var.type.dense_tensor.tensor
        tensor.data_type = NUMBER_OF_DTYPE[dtype] if tensor.data_type == VarType.FP32 else tensor.data_type
    for op in program.blocks[0].ops:
        for attr in op.attrs:
            if attr.name.endswith("dtype") and attr.i == VarType.FP32:
                attr.i = NUMBER_OF_DTYPE[dtype]
    (out / path.name).write_bytes(program.SerializeToString())
    return out


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["attention", "conv2d", "batch_norm", "products"])
@pytest.mark.parametrize("form", FORMS)
def test_programs_of_16_bits_are_read_in_float32(
    paddle_programs: Path, tmp_path: Path, form: str, case: str, kind: str
) -> None:
    folder = paddle_programs / form / case
    model = read_model(_rounded(folder, tmp_path / "half", kind))
    assert model.metadata_props[CONVERTED_FROM] == kind.upper()
    values = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    ]
    assert not {value.dtype for value in values} & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    with np.load(folder / "data.npz") as data:
        x, expected = data["x"], data["y"]
    # 8 bits of bfloat16 and 11 of float16, in the parameters alone
    tolerance = 2e-3 if kind == "float16" else 2e-2
    np.testing.assert_allclose(run(model, x), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_comparison_notices_a_wrong_rule(paddle_programs: Path) -> None:
    folder = paddle_programs / "legacy" / "hard_sigmoid_steep"
    model = read_model(folder)
    node = next(node for node in model.graph if node.op_type == "HardSigmoid")
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.2)
    with np.load(folder / "data.npz") as data:
        assert not np.allclose(run(model, data["x"]), data["y"], rtol=1e-4, atol=1e-5)


def test_cases_cover_the_table(paddle_programs: Path) -> None:
    """Every row of the table is used by some case; the exceptions are tested by hand below or in test_quantized."""
    used = {
        node.metadata_props["fullquant.op_type"]
        for form, case in _all_cases()
        for node in read_model(paddle_programs / form / case).graph
    }
    constants = {"fill_constant", "full_int_array", "assign_value", "range", "linspace"}  # leave no node behind
    by_hand = {"pad2d", "mean", "full_with_tensor", "unstack", "expand_as_v2", "softplus", "shape64", "reciprocal"}
    by_hand |= {"set_value", "set_value_with_tensor", "flash_attn", "memory_efficient_attention"}
    # the older form of int8 files: tests/writers/test_paddle_fake_quantize.py, test_pir.py
    older = {row.types[0] for row in LEGACY.values() if row.types[0].startswith("fake_")}
    assert len(older) == 4
    rows = {row.types[0] for row in (*LEGACY.values(), *PIR.values())}
    assert rows - used - constants - by_hand - older == set()


@pytest.mark.parametrize("value", ["attribute", "tensor"])
def test_a_part_of_a_constant_is_assigned(tmp_path: Path, value: str) -> None:
    attributes = {
        "axes": [0, 1], "starts": [1, -6], "ends": [3, 100], "steps": [1, 2], "decrease_axes": [], "none_axes": [],
        "shape": [1], "values": [0.5],
    }  # fmt: skip
    calls = [
        ("fill_constant", {}, {"Out": ["mask"]}, {"shape": [6, 8], "value": 2.0, "dtype": 5}),
        ("fill_constant", {}, {"Out": ["half"]}, {"shape": [1], "value": 0.5, "dtype": 5}),
        ("set_value", {"Input": ["mask"], **({"ValueTensor": ["half"]} if value == "tensor" else {})},
         {"Out": ["set"]}, {**attributes, "values": [] if value == "tensor" else [0.5]}),
        ("elementwise_mul", {"X": ["x"], "Y": ["set"]}, {"Out": ["y"]}, {"axis": -1}),
    ]  # fmt: skip
    mask = np.full((6, 8), 2.0, np.float32)
    mask[1:3, -6:100:2] = 0.5
    np.testing.assert_allclose(run(read_model(write_program(tmp_path, calls)), X), X * mask)


X = np.random.default_rng(0).uniform(-3, 3, (2, 3, 6, 8)).astype(np.float32)


def _assignment(axes: list[int], starts: list[int], ends: list[int], source: str = "half") -> list[Call]:
    """y = 2 x + 1, where 2 x has half of the first two channels of x at [starts:ends]; "t" is written twice."""
    attributes = {
        "axes": axes, "starts": starts, "ends": ends, "steps": [1] * len(axes), "decrease_axes": [], "none_axes": [],
        "shape": [], "values": [],
    }  # fmt: skip
    return [
        ("slice", {"Input": ["x"]}, {"Out": ["part"]}, {"axes": [1], "starts": [0], "ends": [2], "decrease_axis": []}),
        ("scale", {"X": ["part"]}, {"Out": ["half"]}, {"scale": 0.5, "bias": 0.0, "bias_after_scale": True}),
        ("scale", {"X": ["x"]}, {"Out": ["t"]}, {"scale": 2.0, "bias": 0.0, "bias_after_scale": True}),
        ("set_value", {"Input": ["t"], "ValueTensor": [source]}, {"Out": ["t"]}, attributes),
        ("scale", {"X": ["t"]}, {"Out": ["y"]}, {"scale": 1.0, "bias": 1.0, "bias_after_scale": True}),
    ]


@pytest.mark.parametrize(("start", "end"), [(1, 2**31 - 1), (-2, 100), (0, 2), (0, -1)])
def test_a_part_of_a_computed_tensor_is_assigned(tmp_path: Path, start: int, end: int) -> None:
    expected = 2 * X
    expected[:, start:end] = X[:, :2] / 2
    model = read_model(write_program(tmp_path, _assignment([0, 1], [0, start], [2**31 - 1, end])))
    np.testing.assert_allclose(run(model, X), expected + 1, rtol=1e-6)


@pytest.mark.parametrize(("axes", "starts", "ends"), [([1], [2], [3]), ([1, 2], [1, 1], [3, 7]), ([3], [0], [2])])
def test_assignments_of_another_size_are_refused(
    tmp_path: Path, axes: list[int], starts: list[int], ends: list[int]
) -> None:
    with pytest.raises(UnsupportedOperatorError, match="assignment to a computed tensor"):
        read_model(write_program(tmp_path, _assignment(axes, starts, ends)))


@pytest.mark.parametrize(("mode", "numpy_mode"), [("constant", "constant"), ("reflect", "reflect"), ("edge", "edge")])
def test_pad2d(tmp_path: Path, mode: str, numpy_mode: str) -> None:
    calls = unary("pad2d", paddings=[1, 2, 0, 3], mode=mode, pad_value=0.25, data_format="NCHW")
    options = {"constant_values": 0.25} if mode == "constant" else {}
    expected = np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 3)), mode=numpy_mode, **options)  # type: ignore[call-overload]
    np.testing.assert_array_equal(run(read_model(write_program(tmp_path, calls)), X), expected)


def test_hard_swish_with_other_constants_is_decomposed(tmp_path: Path) -> None:
    model = read_model(write_program(tmp_path, unary("hard_swish", threshold=5.0, scale=4.0, offset=2.0)))
    assert [node.op_type for node in model.graph] == ["Add", "Clip", "Mul", "Div"]
    np.testing.assert_allclose(run(model, X), X * np.clip(X + 2, 0, 5) / 4, rtol=1e-6)


def test_swish_with_beta(tmp_path: Path) -> None:
    model = read_model(write_program(tmp_path, unary("swish", beta=1.5)))
    np.testing.assert_allclose(run(model, X), X / (1 + np.exp(-1.5 * X)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "attributes", "expected"),
    [
        ("mean", {}, X.mean()),
        ("softplus", {"beta": 1.0}, np.log1p(np.exp(X))),
        ("shape64", {}, np.array([2, 3, 6, 8])),
        ("reciprocal", {}, 1 / X),
    ],
)
def test_by_hand(tmp_path: Path, kind: str, attributes: dict[str, float], expected: np.ndarray) -> None:
    calls = unary(kind, **attributes)
    if kind == "shape64":
        calls = [(kind, {"Input": ["x"]}, {"Out": ["y"]}, attributes)]
    np.testing.assert_allclose(run(read_model(write_program(tmp_path, calls)), X), expected, rtol=1e-5)


def test_unstack_and_expand_as(tmp_path: Path) -> None:
    calls = [
        ("unstack", {"X": ["x"]}, {"Y": ["a", "b", "c"]}, {"axis": 1}),
        ("unsqueeze2", {"X": ["c"]}, {"Out": ["c4"]}, {"axes": [1]}),
        ("expand_as_v2", {"X": ["c4"], "Y": ["x"]}, {"Out": ["y"]}, {}),
    ]
    expected = np.broadcast_to(X[:, 2:], X.shape)
    np.testing.assert_array_equal(run(read_model(write_program(tmp_path, calls)), X), expected)


def test_full_with_tensor_shape(tmp_path: Path) -> None:
    calls = [
        ("shape", {"Input": ["x"]}, {"Out": ["size"]}, {}),
        ("full_with_tensor", {"ShapeTensor": ["size"]}, {"Out": ["ones"]}, {"value": 1.5, "dtype": 5}),
        ("elementwise_add", {"X": ["x"], "Y": ["ones"]}, {"Out": ["y"]}, {"axis": -1}),
    ]
    np.testing.assert_array_equal(run(read_model(write_program(tmp_path, calls)), X), X + np.float32(1.5))


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (unary("dropout", is_test=False), "training mode"),
        (unary("pad2d", paddings=[1, 1, 1, 1], mode="mystery"), "'mystery'"),
        (unary("pool2d", ksize=[2, 2], strides=[3, 3], ceil_mode=True), "nothing but padding"),
        (unary("pool2d", ksize=[2, 2], data_format="NHWC"), "NHWC"),
        (unary("p_norm", porder=-1.0), "order -1.0"),
        (unary("lstm"), "recurrent"),
        (unary("unheard_of"), "no translation"),
    ],
)
def test_unsupported_says_where(tmp_path: Path, calls: list, said: str) -> None:  # type: ignore[type-arg]
    write_program(tmp_path, calls)
    with pytest.raises(UnsupportedOperatorError, match=said) as caught:
        read_model(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (str(tmp_path / "model.pdmodel"), repr(calls[0][0]), "'y'", ";"))


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (unary("transpose2", axis=[0, 9, 1, 2]), "axis 9 does not exist"),
        ([("matmul_v2", {"X": ["x"], "Y": ["x"]}, {"Out": ["y"]}, {})], "don't fit"),
        (unary("fill_constant", shape=[1 << 20, 1 << 20], dtype=5, value=1.0), "not credible"),
        (unary("pad2d", paddings=[1, 2]), "not what it should be"),
        ([("relu", {"X": ["ghost"]}, {"Out": ["y"]}, {})], "'ghost'"),
        ([("relu", {}, {"Out": ["y"]}, {})], "0 variables"),
        (unary("split", num=4, axis=1), "4 parts"),
    ],
)
def test_malformed_operators_are_one_line_errors(tmp_path: Path, calls: list, said: str) -> None:  # type: ignore[type-arg]
    write_program(tmp_path, calls)
    with pytest.raises(ModelError, match=said) as caught:
        read_model(tmp_path)
    assert "\n" not in str(caught.value)


QKV = np.random.default_rng(3).normal(0, 0.4, (12, 72)).astype(np.float32)
BIAS = np.random.default_rng(4).normal(0, 1, (1, 3, 12, 12)).astype(np.float32)


def _as_paddle_3(folder: Path, kind: str, attributes: dict[str, Any], mask: bool) -> None:
    """The program in folder, with its `where` of three tensors as the attention operator, in Paddle 3's form."""
    program = ProgramDesc.FromString((folder / "model.pdmodel").read_bytes())
    (folder / "model.pdmodel").unlink()
    document = json.loads(pir_json(PaddleProgram(program, {"w": QKV, "bias": BIAS})))
    ops = document["program"]["regions"][0]["blocks"][0]["ops"]
    (op,) = (op for op in ops if op["#"] == "1.where")
    bias = next(o["O"]["%"] for o in ops if o["#"] == "p" and "bias" in o["A"])
    op["#"] = f"1.{kind}"
    nothing, given = {"%": 0}, {"%": bias if mask else 0}
    op["I"] += [nothing, given] if kind == "flash_attn" else [given, nothing, nothing, nothing, nothing]
    kinds = {bool: "0.a_bool", float: "0.a_f32"}
    op["A"] = [{"N": n, "AT": {"#": kinds[type(value)], "D": value}} for n, value in attributes.items()]
    (folder / "model.json").write_text(json.dumps(document))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["flash_attn", "memory_efficient_attention"])
@pytest.mark.parametrize("form", FORMS)
def test_attention_of_gpus(tmp_path: Path, form: str, kind: str, masked: bool) -> None:
    """PaddlePaddle for CPUs cannot even make a program with it: it is made by hand, the numbers are NumPy's."""
    flash = kind == "flash_attn"
    names = ("q", "k", "v", "attn_mask", "out") if flash else ("query", "key", "value", "bias", "output")
    attributes = {"is_test": True, "causal": False, **({"dropout": 0.1} if flash else {"dropout_p": 0.1, "scale": 0.3})}
    inputs = dict(zip(names, (["q"], ["k"], ["v"], ["bias"] if masked else []), strict=False))
    last = (kind, inputs, {names[4]: ["y"]}, attributes)
    if form == "pir":
        last = ("where", {"Condition": ["q"], "X": ["k"], "Y": ["v"]}, {"Out": ["y"]}, {})
    calls: list[Call] = [
        ("reshape2", {"X": ["x"]}, {"Out": ["tokens"]}, {"shape": [-1, 12, 12]}),
        ("matmul_v2", {"X": ["tokens"], "Y": ["w"]}, {"Out": ["all"]}, {"trans_x": False, "trans_y": False}),
        ("reshape2", {"X": ["all"]}, {"Out": ["heads"]}, {"shape": [-1, 12, 9, 8]}),
        ("split", {"X": ["heads"]}, {"Out": ["q", "k", "v"]}, {"num": 3, "axis": 2, "sections": []}),
        last,
    ]
    q, k, v = np.split((X.reshape(2, 12, 12) @ QKV).reshape(2, 12, 9, 8).transpose(0, 2, 1, 3), 3, axis=1)
    scores = q @ k.transpose(0, 1, 3, 2) * (8**-0.5 if flash else 0.3) + (BIAS if masked else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
    three = [-1, 12, 3, 8]
    shapes = {"tokens": [-1, 12, 12], "all": [-1, 12, 72], "heads": [-1, 12, 9, 8], "q": three, "k": three, "v": three}
    write_program(tmp_path, calls, {"w": QKV, "bias": BIAS}, variables={**shapes, "y": three})
    if form == "pir":
        _as_paddle_3(tmp_path, kind, attributes, masked)
    model = read_model(tmp_path)
    np.testing.assert_allclose(run(model, X), expected, rtol=1e-4, atol=1e-5)
    _check_declared_shape(model, expected.shape)
    back = [tmp_path / f"back.{suffix}" for suffix in ("pdmodel", "json")]
    write_paddle(prepare(model), None, {}, back[0], tmp_path / "back.pdiparams", json_path=back[1])
    for path in back:
        (actual,) = open_session(path, "paddle", threads=1).run({"x": X})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"causal": True}, "causal"), ({"is_test": False, "dropout": 0.1}, "training mode")],
)
def test_attention_that_is_refused(tmp_path: Path, change: dict[str, AttrValue], said: str) -> None:
    calls: list[Call] = [
        ("reshape2", {"X": ["x"]}, {"Out": ["q"]}, {"shape": [-1, 12, 3, 4]}),
        ("flash_attn", {"q": ["q"], "k": ["q"], "v": ["q"]}, {"out": ["y"]}, {"is_test": True, **change}),
    ]
    with pytest.raises(UnsupportedOperatorError, match=said) as caught:
        read_model(write_program(tmp_path, calls))
    assert "operator 'flash_attn' (output 'y')" in str(caught.value)
