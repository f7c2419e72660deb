"""The text form: what it shows, and that it is the same for the same model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fullquant.graph.text import to_text
from tests.graph.toy_models import parse

TEXT = (
    "g (float[N,3,4,4] x, float[2,3,1,1] w, float[2] b) => (float[N,2,?,4] y) "
    "{ a = Conv <kernel_shape = [1, 1], group = 1> (x, w, b)  y = Clip(a, , six) }"
)


def model() -> ir.Model:
    return parse(TEXT, six=np.float32(6), w=np.arange(6).reshape(2, 3, 1, 1) / 2, b=np.float32([0.5, -1.25]))


def test_every_line() -> None:
    assert to_text(model()).splitlines() == [
        "opset onnx 20",
        "input x float[N,3,4,4]",
        "conv_0: a ?[...] = Conv(x, w, b) {group=1 kernel_shape=[1,1]}",
        "clip_1: y float[N,2,?,4] = Clip(a, -, six)",
        "output y float[N,2,?,4]",
        "initializer b float[2] [0.5,-1.25]",
        "initializer six float[] [6]",
        "initializer w float[2,3,1,1] [0,0.5,1,1.5,2,2.5]",
    ]


def test_it_does_not_depend_on_the_history_of_the_model() -> None:
    copy = ir.from_proto(ir.to_proto(model()))
    items = list(copy.graph.initializers.items())
    copy.graph.initializers.clear()
    for _, value in reversed(items):
        copy.graph.initializers.add(value)
    assert to_text(copy) == to_text(model())


def test_large_constants_are_summarised_and_changes_show() -> None:
    text = "g (float[N,101] x, float[101] w) => (float[N,101] y) { y = Add(x, w) }"
    weight = np.linspace(-1, 1, 101)
    shown = to_text(parse(text, w=weight))
    assert "initializer w float[101] (min -1, max 1, rms 0.5831)" in shown
    assert to_text(parse(text, w=weight * (1 + 1e-7))) == shown
    assert to_text(parse(text, w=weight * 1.01)) != shown


def test_tensors_and_floats_as_attributes() -> None:
    shown = to_text(
        parse("g (float[N,2] x) => (float[N,2] y) { c = Constant <value = float[2] {1, 2}> ()  y = Add(x, c) }")
    )
    assert "Constant() {value=[1,2]}" in shown
    assert "alpha=0.1" in to_text(parse("g (float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.1> (x) }"))
