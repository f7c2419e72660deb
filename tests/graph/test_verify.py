"""Each invariant is shown to be checked: a broken graph is refused, and the message names the place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.errors import ModelError
from fullquant.graph.verify import verify
from tests.graph.toy_models import parse

TEXT = "g (float[N,2] x, float[2] w) => (float[N,2] y) { a = Add(x, w)  b = Relu(a)  y = Tanh(b) }"


def _nodes(model: ir.Model) -> list[ir.Node]:
    return list(model.graph)


def _swap_order(model: ir.Model) -> None:
    add = _nodes(model)[0]
    model.graph.remove(add)
    model.graph.insert_after(_nodes(model)[0], add)


def _rename_value(model: ir.Model) -> None:
    _nodes(model)[0].outputs[0].name = "w"


def _rename_node(model: ir.Model) -> None:
    _nodes(model)[1].name = "add_0"


def _anonymous_node(model: ir.Model) -> None:
    _nodes(model)[1].name = None


def _anonymous_value(model: ir.Model) -> None:
    _nodes(model)[0].outputs[0].name = None


def _foreign_input(model: ir.Model) -> None:
    _nodes(model)[1].replace_input_with(0, ir.Value(name="elsewhere"))


def _same_name_other_value(model: ir.Model) -> None:
    _nodes(model)[1].replace_input_with(0, ir.Value(name="a"))


def _empty_initializer(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def _wrong_shape(model: ir.Model) -> None:
    model.graph.initializers["w"].shape = ir.Shape([3])


def _wrong_dtype(model: ir.Model) -> None:
    model.graph.initializers["w"].type = ir.TensorType(ir.DataType.INT64)


def _removed_reader(model: ir.Model) -> None:
    relu = _nodes(model)[1]
    _nodes(model)[2].replace_input_with(0, _nodes(model)[0].outputs[0])
    model.graph.remove(relu)


def _foreign_output(model: ir.Model) -> None:
    model.graph.outputs.append(ir.Value(name="nowhere"))


def _no_output(model: ir.Model) -> None:
    model.graph.outputs.clear()


def _old_opset(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 12


def _unknown_domain(model: ir.Model) -> None:
    model.graph.insert_after(_nodes(model)[2], ir.Node("com.example", "Odd", [], name="odd"))


def _subgraph(model: ir.Model) -> None:
    inner = ir.Graph([], [], nodes=[], name="inner")
    _nodes(model)[1].attributes["body"] = ir.AttrGraph("body", inner)


def _default_input(model: ir.Model) -> None:
    model.graph.inputs.append(model.graph.initializers["w"])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_swap_order, "relu_1.*'a'"),
        (_rename_value, "'w'.*twice"),
        (_rename_node, "two nodes.*'add_0'"),
        (_anonymous_node, "Relu node has no name"),
        (_anonymous_value, "no name.*add_0"),
        (_foreign_input, "relu_1.*'elsewhere'"),
        (_same_name_other_value, "relu_1.*'a'"),
        (_empty_initializer, "'w' has no contents"),
        (_wrong_shape, "'w' declares shape"),
        (_wrong_dtype, "'w' declares INT64"),
        (_removed_reader, "relu_1.*was removed.*'a'"),
        (_foreign_output, "'nowhere'"),
        (_no_output, "no output"),
        (_old_opset, "opset 12"),
        (_unknown_domain, "com.example"),
        (_subgraph, "relu_1.*subgraph"),
        (_default_input, "'w' is a graph input too"),
    ],
)
def test_damage_is_named(damage: Callable[[ir.Model], None], names: str) -> None:
    model = parse(TEXT, w=np.float32([1, 2]))
    verify(model)
    damage(model)
    with pytest.raises(ModelError, match=names):
        verify(model)


def test_functions_are_refused() -> None:
    model = parse(TEXT)
    inner = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="f")
    function = ir.Function("local", "F", graph=inner, attributes=[])
    model.functions[function.identifier()] = function
    with pytest.raises(ModelError, match="functions"):
        verify(model)


def test_an_optional_output_may_be_left_out() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Dropout(x) }")
    dropout = next(iter(model.graph))
    model.graph.remove(dropout)
    new = ir.Node("", "Dropout", dropout.inputs, num_outputs=2, name="dropout_0")
    model.graph.append(new)
    new.outputs[0].name, new.outputs[1].name = "y", ""
    model.graph.outputs[0] = new.outputs[0]
    dropout.replace_input_with(0, None)
    verify(model)
