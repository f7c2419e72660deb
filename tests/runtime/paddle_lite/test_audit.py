"""The checks on a converted program: a right one has no findings, and each thing that can be wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fullquant.errors import ModelError
from fullquant.formats.framework_pb2 import AttrType, OpDesc, ProgramDesc, VarType
from fullquant.formats.param_stream import write_combined
from fullquant.runtime.paddle_lite.audit import Audit, audit
from fullquant.runtime.paddle_lite.program import LiteOperator, OptimisedProgram, load_optimised, optimised_program
from fullquant.runtime.paddle_lite.source import SourceLayer

TIMVX, ARM, X86 = ("verisilicon_timvx", "arm"), ("arm",), ("x86",)
WEIGHT = np.array([[[[3]]], [[[-4]]]], np.int8)
STEPS = np.array([0.5, 0.25], np.float32)
SUPPORTED = {"verisilicon_timvx": frozenset({"conv2d", "matmul_v2", "elementwise_add", "softmax", "strided_slice"})}
SOURCE = {
    "w": SourceLayer(WEIGHT, STEPS, 0.125),
    "fc": SourceLayer(WEIGHT.reshape(1, 2), STEPS, 0.125),
}


def op(kind: str, inputs: dict, output: str, **attributes: object) -> LiteOperator:
    kernel = {name: attributes.pop(name, "") for name in ("alias", "place", "precision")}
    named = {key: (value,) for key, value in inputs.items()}
    return LiteOperator(kind, named, {"Output" if "conv" in kind else "Out": (output,)}, attributes, **kernel)  # type: ignore[arg-type]


CONV = op(
    "conv2d", {"Input": "x", "Filter": "w", "Bias": "b"}, "c", enable_int8=True, groups=1, act_type="relu",
    Input0_scale=[0.125], Filter0_scale=[0.5, 0.25], Output0_scale=[0.0625],
)  # fmt: skip
PRODUCT = op(
    "matmul_v2", {"X": "c", "Y": "fc"}, "m", enable_int8=True, trans_y=False, X0_scale=[0.125], Y0_scale=[0.5, 0.25],
    Out0_scale=[0.25],
)  # fmt: skip
ADD = op("elementwise_add", {"X": "m", "Y": "b"}, "a", X0_scale=[0.25], Out0_scale=[0.25])
SUBGRAPH = op("subgraph", {"Inputs": "x"}, "a", place="nnadapter", precision="any", alias="def")


def on(place: str, operator: LiteOperator, **changes: object) -> LiteOperator:
    return replace(operator, **{"place": place, "precision": "int8", "alias": "int8_out", **changes})


def without(operator: LiteOperator, name: str) -> LiteOperator:
    return replace(operator, attributes={k: v for k, v in operator.attributes.items() if k != name})


def having(operator: LiteOperator, **attributes: object) -> LiteOperator:
    return replace(operator, attributes={**operator.attributes, **attributes})


def program(outside: list[LiteOperator], *inside: list[LiteOperator], **parameters: np.ndarray) -> OptimisedProgram:
    held = {"w": WEIGHT, "fc": WEIGHT.reshape(1, 2), "b": np.zeros(2, np.float32), **parameters}
    feed, fetch = op("feed", {}, "x"), op("fetch", {"X": "a"}, "")
    return OptimisedProgram((feed, *outside, fetch), tuple(tuple(operators) for operators in inside), held)


def judged(made: OptimisedProgram, targets: tuple[str, ...] = TIMVX) -> Audit:
    return audit(made, targets, supported=SUPPORTED, source=SOURCE)


def test_a_whole_network_on_the_npu() -> None:
    found = judged(program([SUBGRAPH], [CONV, PRODUCT, ADD]))
    assert found.findings == ()
    assert found.fully_on_npu
    assert (found.operators, found.on_npu, found.layers, found.int8_layers, found.same_weights) == (3, 3, 2, 2, 2)


def test_layers_on_a_processor() -> None:
    fc = op(
        "fc", {"Input": "c", "W": "fc"}, "f", enable_int8=True, Input0_scale=[0.125], W0_scale=[0.5, 0.25],
        place="arm", precision="int8", alias="fp32out",
    )  # fmt: skip
    softmax = op("softmax", {"X": "f"}, "s", place="arm", precision="float32", alias="def")
    found = judged(program([on("arm", CONV), fc, softmax]), ARM)
    assert found.findings == ()
    assert found.kernels == {"arm float32": {"softmax": 1}, "arm int8": {"conv2d": 1, "fc": 1}}
    assert not found.fully_on_npu


PAD = op("pad", {"X": "c"}, "p", place="host", precision="float32", Out0_scale=[1.0])
SOFTMAX = op("softmax", {"X": "c"}, "s", place="arm", precision="float32")
MUTATIONS: dict[str, tuple[OptimisedProgram, str, str]] = {
    "no converter": (program([SUBGRAPH, PAD], [CONV]), "fallback", "no verisilicon_timvx converter for pad"),
    "no scale": (program([SUBGRAPH, SOFTMAX], [CONV]), "fallback", "no output scale"),
    "cut off": (program([SUBGRAPH, having(SOFTMAX, Out0_scale=[1.0])], [CONV]), "fallback", "cut off"),
    "two parts": (program([SUBGRAPH, SUBGRAPH], [CONV], [PRODUCT, ADD]), "fallback", "in 2 subgraphs, not in one"),
    "float inside": (program([SUBGRAPH], [CONV, without(ADD, "Out0_scale")]), "fallback", "none at its output"),
    "transfer inside": (program([SUBGRAPH], [CONV, op("calib", {"Input": "c"}, "f")]), "fallback", "leaves int8"),
    "float weights": (program([SUBGRAPH], [CONV], w=WEIGHT.astype(np.float32)), "float", "its weights are float32"),
    "not marked": (program([SUBGRAPH], [without(CONV, "enable_int8")]), "float", "turned to float32"),
    "input scale": (program([SUBGRAPH], [without(CONV, "Input0_scale")]), "float", "no scale for its input"),
    "weight scales": (
        program([SUBGRAPH], [having(CONV, Filter0_scale=[0.5, 0.25, 1.0])]), "float", "3 weight scales for 2 channels",
    ),
    "output scale": (program([SUBGRAPH], [without(CONV, "Output0_scale")]), "float", "no scale for its output"),
    "changed integers": (program([SUBGRAPH], [CONV], w=WEIGHT + np.int8(1)), "changed", "integers of 'w'"),
    "changed scales": (program([SUBGRAPH], [having(CONV, Filter0_scale=[0.5, 0.5])]), "changed", "scales of 'w'"),
    "changed input": (program([SUBGRAPH], [having(CONV, Input0_scale=[0.5])]), "changed", "input has the scale 0.5"),
    "unknown weight": (
        program([SUBGRAPH], [replace(CONV, inputs={**CONV.inputs, "Filter": ("v",)})], v=WEIGHT),
        "changed", "no int8 weight",
    ),
    "steps": (
        program([SUBGRAPH], [CONV, op("strided_slice", {"Input": "c"}, "s", strides=[2, 2], Out0_scale=[1.0])]),
        "wrong", "without its steps",
    ),
    "hard_swish": (
        program([SUBGRAPH], [CONV, op("hard_swish", {"X": "c"}, "s", threshold=5.0, Out0_scale=[1.0])]),
        "wrong", "threshold 6, scale 6",
    ),
    "product without bias": (program([SUBGRAPH], [PRODUCT]), "wrong", "a scale per column"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_wrong_is_found(name: str) -> None:
    made, kind, words = MUTATIONS[name]
    found = judged(made).findings
    assert any(f.kind == kind and words in f.why for f in found), found


X86_MUTATIONS: dict[str, tuple[list[LiteOperator], str]] = {
    "activation": ([on("x86", having(CONV, act_type="hard_swish"))], "leaves out the fused hard_swish"),
    "no bias": (
        [on("x86", having(replace(CONV, inputs={"Input": ("x",), "Filter": ("w",)}), groups=2))],
        "memory that is not there",
    ),
    "columns": ([on("x86", PRODUCT, precision="float32", alias="def")], "every column gets the first one's scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", X86_MUTATIONS)
def test_faults_of_x86_kernels(name: str) -> None:
    operators, words = X86_MUTATIONS[name]
    assert any(f.kind == "wrong" and words in f.why for f in judged(program(operators), X86).findings)


def test_a_right_program_for_x86_has_notes_only() -> None:
    calib = op("calib", {"Input": "x"}, "i", place="x86", precision="int8", alias="fp32_to_int8")
    right = judged(program([calib, on("x86", CONV)]), X86)
    assert right.findings == ()
    assert [("modulo 32" in note) for note in right.notes] == [True]
    wide = program([on("x86", CONV)], w=np.full_like(WEIGHT, -65))
    assert "1 layers have weights outside of [-64, 63]" in audit(wide, X86).notes[0]


def test_folded_normalization_may_change_scales() -> None:
    made = program([SUBGRAPH], [having(CONV, Filter0_scale=[0.5, 0.5])])
    source = {"w": replace(SOURCE["w"], normalised=True)}
    assert audit(made, TIMVX, supported=SUPPORTED, source=source).findings == ()


def test_a_weight_that_is_converted_before_use_is_judged() -> None:
    once = op("calib_once", {"Input": "fc"}, "fc/cast", place="x86", precision="int8", alias="int8_to_fp32")
    read = replace(PRODUCT, inputs={"X": ("c",), "Y": ("fc/cast",)})
    found = judged(program([once, on("x86", read, precision="float32", alias="def")]), X86)
    assert (found.layers, found.int8_layers) == (1, 0)


def test_a_float_model_is_not_judged_by_its_layers() -> None:
    made = program([on("arm", without(CONV, "enable_int8"), precision="float32")], w=WEIGHT.astype(np.float32))
    assert audit(made, ARM).findings == ()
    assert audit(made, ARM).same_weights is None


# --- reading ---------------------------------------------------------------------------------------------------------


def described() -> ProgramDesc:
    """feed, a subgraph and fetch; the convolution is in the second block, whose number is nonsense, as in 2.13rc0."""
    desc = ProgramDesc()
    main, inner = desc.blocks.add(idx=0, parent_idx=-1), desc.blocks.add(idx=-1271119952, parent_idx=7)
    for name, kind in (("feed", VarType.FEED_MINIBATCH), ("fetch", VarType.FETCH_LIST)):
        main.vars.add(name=name, persistable=True).type.type = kind
    variable = main.vars.add(name="w", persistable=True)
    variable.type.type = VarType.DENSE_TENSOR
    variable.type.dense_tensor.tensor.data_type = VarType.INT8
    subgraph = main.ops.add(type="subgraph")
    subgraph.attrs.add(name="sub_block", type=AttrType.INT, i=1)
    subgraph.attrs.add(name="__@kernel_type_attr@__", type=AttrType.STRING, s="subgraph/def/18/4/1")
    conv: OpDesc = inner.ops.add(type="conv2d")
    conv.inputs.add(parameter="Filter", arguments=["w"])
    conv.outputs.add(parameter="Output", arguments=["c"])
    conv.attrs.add(name="Filter0_scale", type=AttrType.FLOATS, floats=[0.5, 0.25])
    conv.attrs.add(name="enable_int8", type=AttrType.BOOLEAN, b=True)
    return desc


def test_reading_what_the_converter_writes(tmp_path) -> None:
    (tmp_path / "model").write_bytes(described().SerializeToString())
    with (tmp_path / "params").open("wb") as stream:
        write_combined(stream, {"w": WEIGHT})
    made = load_optimised(tmp_path)
    ((conv,),) = made.subgraphs
    assert (conv.type, conv.int8, conv.weight, conv.output) == ("conv2d", True, "w", "c")
    np.testing.assert_array_equal(conv.scales("Filter"), STEPS)
    assert made.operators[0].place == "nnadapter"
    np.testing.assert_array_equal(made.parameters["w"], WEIGHT)


def spoiled(change: Callable[[ProgramDesc], None]) -> ProgramDesc:
    desc = described()
    change(desc)
    return desc


def test_a_subgraph_without_its_block(tmp_path) -> None:
    def away(desc: ProgramDesc) -> None:
        del desc.blocks[1]

    with pytest.raises(ModelError, match=r"subgraphs name the blocks \[1\] of 1"):
        optimised_program(spoiled(away), {})
    (tmp_path / "model").write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="is not a program of Paddle Lite's converter"):
        load_optimised(tmp_path)
