"""Edits keep names at the border, uses and order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ModelError
from fullquant.graph import edit
from fullquant.graph.verify import verify
from tests.graph.toy_models import feeds, operators, parse, run

CHAIN = "g (float[N,3,4,4] x, float[2,3,1,1] w) => (float[N,2,4,4] y) { a = Conv(x, w)  b = Relu(a)  y = Sigmoid(b) }"


def node(model: ir.Model, op_type: str) -> ir.Node:
    return next(n for n in model.graph if n.op_type == op_type)


def test_constants_are_seen_through_initializers_and_constant_nodes() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { c = Constant <value_floats = [1.0, 2.0]> ()  y = Add(x, c) }")
    add = node(model, "Add")
    assert edit.constant_value(add.inputs[0]) is None
    np.testing.assert_array_equal(edit.constant_value(add.inputs[1]), np.float32([1, 2]))
    operand = edit.constant_operand(add)
    assert operand is not None
    assert operand[0] is add.inputs[0]
    assert edit.scalar_constant(add.inputs[1]) is None
    assert edit.constant_value(None) is None


def test_a_graph_input_with_a_default_is_no_constant() -> None:
    model = parse("g (float[N,2] x, float[2] w) => (float[N,2] y) { y = Add(x, w) }")
    weight = model.graph.initializers["w"]
    model.graph.inputs.append(weight)
    assert edit.constant_value(weight) is None


def test_replace_node_fuses_a_chain_and_keeps_the_last_name() -> None:
    model = parse(CHAIN)
    conv, sigmoid = node(model, "Conv"), node(model, "Sigmoid")
    conv.metadata_props[edit.OP_TYPE] = "conv2d"
    new = edit.replace_node(conv, "Conv", conv.inputs, edit.plain_attributes(conv), result=sigmoid.outputs[0])
    verify(model)
    assert operators(model) == ["Conv"]
    assert (new.name, new.outputs[0].name) == ("conv_0", "y")
    assert new.metadata_props[edit.OP_TYPE] == "conv2d"
    assert new.outputs[0].is_graph_output()


def test_replace_node_leaves_what_others_read() -> None:
    model = parse(
        "g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  b = Sigmoid(a)  c = Tanh(a)  y = Add(b, c) }",
    )
    before = [run(model, feed) for feed in feeds(model)]
    relu = node(model, "Relu")
    edit.replace_node(relu, "LeakyRelu", relu.inputs, {"alpha": 0.0})
    verify(model)
    for feed, expected in zip(feeds(model), before, strict=True):
        np.testing.assert_array_equal(run(model, feed), expected)


def test_prune_removes_upwards_and_stops_at_what_is_used() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  b = Tanh(a)  c = Sigmoid(b)  y = Exp(a) }")
    edit.prune(node(model, "Sigmoid"))
    assert operators(model) == ["Relu", "Exp"]
    edit.prune(node(model, "Exp"))
    assert operators(model) == ["Relu", "Exp"], "a graph output is in use"


def test_remove_from_chain_keeps_the_border() -> None:
    inner = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  b = Identity(a)  y = Tanh(b) }")
    assert edit.remove_from_chain(node(inner, "Identity"))
    assert [str(v.name) for n in inner.graph for v in n.outputs] == ["a", "y"]
    last = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  y = Identity(a) }")
    assert edit.remove_from_chain(node(last, "Identity"))
    assert [str(v.name) for n in last.graph for v in n.outputs] == ["y"]
    whole = parse("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    assert not edit.remove_from_chain(node(whole, "Identity"))
    for model in (inner, last, whole):
        verify(model)


def test_insert_before_gives_unique_names() -> None:
    model = parse(CHAIN)
    relu = node(model, "Relu")
    first = edit.insert_before(relu, "Neg", [relu.inputs[0]], name="conv_0", output="a", like=relu.inputs[0])
    relu.replace_input_with(0, first)
    verify(model)
    assert first.name == "a_1"
    assert edit.unique_name(model.graph, "a") == "a_2"


def test_initializers_are_copies() -> None:
    model = parse(CHAIN)
    array = np.zeros(3, np.float32)
    value = edit.add_initializer(model.graph, "w", array)
    array[0] = 1.0
    assert value.name == "w_1"
    np.testing.assert_array_equal(edit.constant_value(value), np.zeros(3))
    edit.set_initializer(value, np.ones(4, np.float32))
    assert edit.dims(value) == (4,)
    verify(model)


def test_sole_consumer_counts_uses_and_outputs() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  y = Mul(a, a) }")
    assert edit.sole_consumer(node(model, "Relu").outputs[0]) is None
    assert edit.other_input(node(model, "Mul"), node(model, "Relu").outputs[0]) is None
    assert edit.sole_consumer(model.graph.outputs[0]) is None
    assert edit.consumers(node(model, "Relu").outputs[0]) == (node(model, "Mul"),)


def test_dims_and_attributes() -> None:
    model = parse("g (float[N,3,?] x) => (float[N,3,?] y) { y = LeakyRelu <alpha = 0.25> (x) }")
    assert edit.dims(model.graph.inputs[0]) == ("N", 3, None)
    leaky = node(model, "LeakyRelu")
    assert edit.attribute_float(leaky, "alpha", 0.01) == 0.25
    assert edit.attribute_int(leaky, "missing", 7) == 7
    assert edit.plain_attributes(leaky) == {"alpha": 0.25}
    assert edit.input_at(leaky, 5) is None


def test_missing_parts_are_named() -> None:
    lonely = ir.node("Relu", [None], name="relu_7")
    with pytest.raises(ModelError, match="relu_7"):
        edit.data_input(lonely)
    with pytest.raises(ModelError, match="in no graph"):
        edit.graph_of(lonely)
    with pytest.raises(ModelError, match="no name"):
        edit.value_name(ir.Value())
