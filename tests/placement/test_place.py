"""Placement decisions with their reasons."""

from __future__ import annotations

import numpy as np
import pytest

from fullquant.errors import ConfigError, PlacementError
from fullquant.numerics.qparams import QuantSpec
from fullquant.placement.decision import Decision, Placement
from fullquant.placement.place import PlacementOptions, place
from tests.graphs import graph, small_classifier


def test_every_float_tensor_of_a_full_placement_has_a_scale() -> None:
    model = small_classifier()
    placement = place(model)
    activations = [d for d in placement if d.kind == "activation"]
    produced = {str(v.name) for n in model.graph for v in n.outputs} | {"x"}
    assert {d.tensor for d in activations} == produced
    assert all(d.spec == QuantSpec(-128, 127) for d in activations)
    assert all(d.reason for d in placement)


def test_a_relu_read_by_nobody_else_is_fused_and_rounded_once() -> None:
    placement = place(small_classifier())
    assert placement["c1"].fused
    assert placement["c1"].shares == "r1"
    assert "one kernel" in placement["c1"].reason
    assert placement["c2"].shares == "r2"
    assert not placement["r1"].fused
    assert placement["r1"].shares is None
    # HardSwish is not a clamp: its input is rounded on its own.
    assert placement["a1"].shares is None
    assert not placement["a1"].fused


def test_a_relu_whose_input_has_a_second_reader_is_not_fused() -> None:
    w = np.ones((3, 3, 1, 1), np.float32)
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Add", ["c", "r"], ["y"], {})]
    placement = place(graph(nodes, {"w": w}))
    assert not placement["c"].fused
    assert placement["r"].shares == "c"


def test_moves_and_concat_share_one_scale() -> None:
    nodes = [
        ("MaxPool", ["x"], ["m"], {"kernel_shape": [2, 2]}),
        ("Relu", ["m"], ["r"], {}),
        ("Concat", ["m", "r"], ["y"], {"axis": 1}),
    ]
    placement = place(graph(nodes, {}))
    assert {placement.scale_owner(t) for t in ("x", "m", "r", "y")} == {"x"}
    assert "keeps their scale" in placement["y"].reason


def test_weights_are_per_output_channel_and_biases_int32() -> None:
    placement = place(small_classifier())
    assert placement["w1"].spec == QuantSpec(-127, 127, axis=0)
    assert placement["w6"].spec == QuantSpec(-127, 127, axis=1)
    assert placement["b1"].kind == "bias"
    assert placement["b1"].spec is not None
    assert placement["b1"].spec.qmax == 2**31 - 1
    assert placement["zero"].spec is None


def test_reduce_range_and_per_tensor_weights() -> None:
    placement = place(small_classifier(), options=PlacementOptions(reduce_range=True, per_channel=False))
    assert placement["w1"].spec == QuantSpec(-64, 63)


def test_a_skipped_node_stays_float_and_its_neighbours_do_not() -> None:
    placement = place(small_classifier(), options=PlacementOptions(skip_patterns=("HardSwish_12",)))
    assert placement["w5"].spec is not None
    # The average pool behind the skipped node still reads integers.
    assert placement["hs"].spec is not None
    assert placement["a1"].spec is None
    assert "not_quant_pattern" in placement["a1"].reason


def test_a_name_scope_matches_a_pattern() -> None:
    model = small_classifier()
    model.graph.node("Conv_10").metadata_props["fullquant.namescope"] = "/skip_quant_1/"
    placement = place(model, options=PlacementOptions(skip_patterns=("skip_quant",)))
    assert placement["w5"].spec is None
    assert placement["w1"].spec is not None


def test_the_literal_operator_types_of_a_paddleslim_configuration() -> None:
    options = PlacementOptions(full=False, op_types=("depthwise_conv2d", "mul"))
    placement = place(small_classifier(), options=options)
    assert placement["r1"].consumers == frozenset({"Conv_2"})
    assert placement["w2"].spec == QuantSpec(-127, 127, axis=0)
    assert placement["f"].consumers == frozenset({"Gemm_15"})
    assert placement["x"].spec is None
    assert placement["w1"].spec is None
    assert placement["logits"].spec is None


def test_an_operator_without_a_rule_is_named_with_the_remedy() -> None:
    model = graph([("Einsum", ["x"], ["y"], {"equation": "nchw->nhwc"})], {})
    with pytest.raises(PlacementError, match=r"'Einsum' \(node 'Einsum_0'\).*not_quant_pattern"):
        place(model)
    assert place(model, options=PlacementOptions(skip_patterns=("Einsum",)))["y"].spec is None


def test_an_unknown_target_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tflite'.*paddle_lite"):
        place(small_classifier(), "tflite")


def test_affine_targets_have_zero_points() -> None:
    placement = place(small_classifier(), "onnxruntime")
    assert placement["x"].spec == QuantSpec(0, 255, symmetric=False)
    assert placement["w1"].spec == QuantSpec(-127, 127, axis=0)


def test_a_matmul_and_its_bias_are_one_kernel() -> None:
    constants = {"w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)}
    nodes = [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["y"], {})]
    placement = place(graph(nodes, constants))
    assert placement["m"].fused
    assert placement["b"].kind == "bias"
    assert placement["w"].spec == QuantSpec(-127, 127, axis=1)


def test_decisions_refuse_to_exist_invalid() -> None:
    with pytest.raises(ValueError, match="no reason"):
        Decision("t", "activation", None, "")
    with pytest.raises(ValueError, match="own scale"):
        Decision("t", "activation", QuantSpec(-128, 127), "r", shares="t")
    with pytest.raises(ValueError, match="stays float"):
        Decision("t", "activation", None, "r", shares="u")


def test_the_scale_owner_never_shares() -> None:
    placement: Placement = place(small_classifier())
    for decision in placement:
        if decision.shares is not None:
            assert placement[decision.shares].shares is None
            assert not placement[decision.shares].fused
