"""The tables of the targets: what they state, what it does to a placement, and that the documentation repeats it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from fullquant.config.quantization import QuantAware, TargetName
from fullquant.errors import ConfigError, PlacementError
from fullquant.numerics.qparams import QuantSpec
from fullquant.passes import prepare
from fullquant.placement import document
from fullquant.placement.place import PlacementOptions, place
from fullquant.placement.rules import OperatorRule, Source, rules_of
from fullquant.placement.target import TARGETS, find_target
from fullquant.writers.onnx_qdq import LAYOUTS
from tests.graphs import graph, small_classifier

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "targets.md"


def test_the_configuration_knows_exactly_the_tables() -> None:
    assert set(get_args(TargetName)) == set(TARGETS)
    assert all(QuantAware().target_for(name) == name for name in TARGETS)  # deploy_hardware takes them too


def test_every_layout_exists() -> None:
    assert {target.onnx_layout for target in TARGETS.values()} <= set(LAYOUTS)


def test_roles_are_the_same_wherever_an_operator_is_known() -> None:
    """Files are shared between runtimes, so that whose scale an output has cannot depend on the target."""
    roles: dict[str, set[str]] = {}
    for target in TARGETS.values():
        for operator, rule in target.rules.items():
            roles.setdefault(operator, set()).add(rule.role)
    assert all(len(found) == 1 for found in roles.values())


@pytest.mark.parametrize("name", TARGETS)
def test_a_small_network_is_placed_on_every_target(name: str) -> None:
    target = find_target(name)
    placement = place(small_classifier(), name)
    for decision in placement:
        if decision.kind == "activation":
            assert decision.spec in (target.activation, target.non_negative), decision.tensor
        elif decision.kind == "weight" and decision.spec is not None:
            assert replace(decision.spec, axis=None) == target.weight, decision.tensor
    assert target.activation.symmetric == (name != "onnxruntime")
    assert (target.non_negative is None) == (name != "openvino")
    assert target.writes_paddle == (name not in ("onnxruntime", "openvino"))


def test_float_kernels_are_named_in_the_reasons() -> None:
    on_arm, on_npu = (place(small_classifier(), name) for name in ("paddle_lite", "verisilicon_timvx"))
    assert "paddle_lite computes HardSwish in float" in on_arm["hs"].reason
    assert "in float" not in on_npu["hs"].reason
    assert on_arm["hs"].spec is not None  # the tensor is int8 all the same


def test_an_operator_that_a_chip_lacks_is_refused() -> None:
    nodes = [("Mish", ["x"], ["y"], {})]
    assert place(graph(nodes, {}), "verisilicon_timvx")["y"].spec is not None
    with pytest.raises(PlacementError, match=r"no int8 rule for 'Mish' .* 'rknn'.*not_quant_pattern"):
        place(graph(nodes, {}), "rknn")


def _product(bias: str) -> dict[str, QuantSpec | None]:
    """Grid of the weight of a matrix product on each target; bias: of the Gemm, by an Add behind a MatMul, or none."""
    constants = {"w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)}
    nodes = {
        "gemm": [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "w", "b"], ["y"], {})],
        "gemm without": [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "w"], ["y"], {})],
        "add": [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["y"], {})],
        "without": [("MatMul", ["x", "w"], ["y"], {})],
    }[bias]
    shape = ("N", 1, 1, 8)
    return {name: place(graph(nodes, constants, input_shape=shape), name)["w"].spec for name in TARGETS}


def test_weights_have_the_granularity_of_the_table() -> None:
    per_channel = QuantSpec(-127, 127, axis=1)
    for bias in ("gemm", "add"):
        assert set(_product(bias).values()) == {per_channel}
    for bias in ("gemm without", "without"):
        found = _product(bias)
        assert found.pop("verisilicon_timvx") == QuantSpec(-127, 127)
        assert set(found.values()) == {per_channel}


def test_the_coarser_of_table_and_option_counts() -> None:
    for name in TARGETS:
        placement = place(small_classifier(), name, PlacementOptions(per_channel=False, reduce_range=True))
        assert placement["w1"].spec == QuantSpec(-64, 63)


def test_powers_of_two() -> None:
    placement = place(small_classifier(), "rknn", PlacementOptions(scale_grid="power_of_two"))
    placed = [d.spec for d in placement if d.spec is not None and d.kind != "bias"]
    assert placed
    assert all(spec.mantissas == (1.0,) for spec in placed)


def test_tables_refuse_contradictions() -> None:
    target = find_target("paddle_lite")
    with pytest.raises(ValueError, match="no role for Cumsum"):
        rules_of({}, frozenset({"Cumsum"}), {})
    wrong_rule = {**target.rules, "Add": OperatorRule("compute", "int8", "per_channel")}
    with pytest.raises(ValueError, match="Add states a granularity"):
        replace(target, rules=wrong_rule)
    with pytest.raises(ValueError, match=r"Conv states a granularity .*or lacks"):
        replace(target, rules={**target.rules, "Conv": OperatorRule("compute", "int8")})
    with pytest.raises(ValueError, match="no zero point"):
        replace(target, activation=QuantSpec(0, 255, symmetric=False))
    with pytest.raises(ValueError, match="no axis"):
        replace(target, weight=QuantSpec(-127, 127, axis=0))
    with pytest.raises(ValueError, match="weights are symmetric"):
        replace(target, weight=QuantSpec(0, 255, symmetric=False))
    with pytest.raises(ValueError, match="cannot fuse"):
        replace(target, fuses_activation=frozenset({"Reshape"}))
    with pytest.raises(ValueError, match="no zero point"):
        replace(target, non_negative=QuantSpec(0, 255, symmetric=False))
    with pytest.raises(ValueError, match="begins at 0"):
        replace(find_target("openvino"), non_negative=QuantSpec(-128, 127))
    with pytest.raises(ValueError, match="Reshape is no function"):
        replace(target, fused_functions=frozenset({"Reshape"}))
    with pytest.raises(ValueError, match="no sources"):
        replace(target, sources=())
    with pytest.raises(ValueError, match="a fact and a place"):
        Source("int8", "")


def test_openvino_averages_have_free_scales_and_layers_short_ones() -> None:
    model = prepare(small_classifier())
    placement = place(model, "openvino", PlacementOptions(scale_grid="short"))
    free: dict[str, set[bool]] = {}
    for node in model.graph:
        decision = placement[str(node.outputs[0].name)]
        if decision.spec is not None and not decision.fused and decision.shares is None:
            free.setdefault(node.op_type, set()).add(decision.spec.mantissas == ())
    assert free.pop("GlobalAveragePool") == {True}
    assert set().union(*free.values()) == {False}
    assert all(find_target("openvino").kernel(operator) == "int8" for operator in find_target("openvino").free_results)


def test_the_documentation_is_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document.replaced(text) == text, "run: python -m fullquant.placement.document docs/targets.md"


def test_the_check_of_the_documentation_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document.replaced(text.replace("| Conv | its own |", "| Conv | another's |")) == text
    with pytest.raises(ValueError, match="lacks the marks"):
        document.replaced("# Targets")
    changed = {**TARGETS, "tensorrt": replace(TARGETS["tensorrt"], bias="int32")}
    monkeypatch.setattr(document, "TARGETS", changed)
    assert document.replaced(text) != text


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'tpu'.*rknn"):
        find_target("tpu")
