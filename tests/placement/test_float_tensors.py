"""What a target rounds that rounds in front of its integer kernels only."""

from __future__ import annotations

from fullquant.placement.place import place
from tests.graph.toy_models import parse
from tests.graphs import small_classifier

_HEAD = "g (float[N,4,8,8] x, float[4,4,1,1] v, float[4,4,1,1] w) => (float y) {"


def test_a_classifier_ends_in_float() -> None:
    placement = place(small_classifier(), "paddle_inference")
    assert {d.tensor for d in placement if d.kind == "activation" and d.spec is None} == {"logits", "y"}
    assert "nobody rounds it" in placement["y"].reason
    full = place(small_classifier(), "paddle_lite")
    assert all(d.spec is not None for d in full if d.kind == "activation")


def test_a_layer_leaves_its_sums_to_a_float_kernel() -> None:
    placement = place(parse(f"{_HEAD} a = Conv(x, v) r = Relu(a) e = Exp(r) y = Conv(e, w) }}"), "paddle_inference")
    assert [placement[name].spec is None for name in "xarey"] == [False, True, True, False, True]


def test_integer_and_float_readers() -> None:
    """Made in float: rounded for the integer kernel alone. Made by an integer kernel: rounded for both."""
    model = parse(f"{_HEAD} e = Exp(x) a = Conv(e, v) s = Sqrt(e) m = Add(a, s) n = Neg(m) y = Conv(m, w) }}")
    placement = place(model, "paddle_inference")
    assert placement["e"].consumers == {next(str(node.name) for node in model.graph if node.op_type == "Conv")}
    assert placement["s"].consumers is None
    assert placement["m"].consumers is None
    assert placement["n"].spec is None


def test_moves_pass_on_what_they_move() -> None:
    body = "e = Exp(x) t = Transpose <perm = [0, 1, 3, 2]> (e) q = Sqrt(t) z = Conv(q, v) u = Transpose(z) y = Exp(u)"
    placement = place(parse(f"{_HEAD} {body} }}"), "paddle_inference")
    assert [placement[name].spec is None for name in "etqzuy"] == [True, True, False, True, True, True]


def test_averages_keep_the_scale_of_their_input() -> None:
    body = "a = Conv(x, v) p = AveragePool <kernel_shape = [2, 2]> (a) y = Conv(p, w)"
    assert place(parse(f"{_HEAD} {body} }}"), "paddle_inference")["p"].shares == "a"
    assert place(parse(f"{_HEAD} {body} }}"), "paddle_lite")["p"].shares is None
