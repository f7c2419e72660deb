"""Rare operators between int8 tensors: the simulation, the Paddle program in both forms and the ONNX file agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullquant.errors import PlacementError
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.integer import IntegerModel
from fullquant.runtime.sessions import open_session
from fullquant.writers.onnx_qdq import write_onnx
from fullquant.writers.program_desc import write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def one(op: str, *constants: np.ndarray, **attributes: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The operator behind a convolution (its output is h) and in front of a Relu."""
    names = [f"c{index}" for index in range(len(constants))]
    given = dict(zip(names, constants, strict=True))
    read = [name if given[name].size else "" for name in names]
    return [(op, ["h", *read], ["m"], attributes), ("Relu", ["m"], ["y"], {})], given


NOTHING = np.zeros(0, np.float32)
SIZES = (NOTHING, NOTHING, ints(10, 5))
MIRROR = ints(0, 0, 1, 1, 0, 0, 1, 1)
POSITIVE = [("Clip", ["h", "low", "high"], ["p"], {})]
BOUNDS = {"low": np.float32(0.1), "high": np.float32(6)}
#: those without an int8 rule are kept float by a pattern, as the error says
TAILS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "ArgMax": ([("ArgMax", ["h"], ["y"], {"axis": 1})], {}),
    "TopK": ([("TopK", ["h", "k"], ["y", "i"], {"axis": 1})], {"k": ints(2)}),
    "Where": (
        [("Greater", ["h", "z"], ["b"], {}), ("Where", ["b", "h", "z"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        {"z": np.float32(0.25)},
    ),
    "ConvTranspose": one("ConvTranspose", normal(4, 5, 2, 2), normal(5), strides=[2, 2]),
    "slopes": one("PRelu", normal(4, 1, 1)),
    "cube": one("Pow", np.float32(3)),
    "root": (
        [*POSITIVE, ("Pow", ["p", "e"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        {**BOUNDS, "e": np.float32(1 / 3)},
    ),
    "powers": (
        [*POSITIVE, ("Pow", ["p", "e"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        {**BOUNDS, "e": np.float32([[[1.5]], [[0.3]], [[-1]], [[2.25]]])},
    ),
    "exponential": ([("Pow", ["e", "h"], ["m"], {}), ("Relu", ["m"], ["y"], {})], {"e": np.float32(1.7)}),
    "Ceil": one("Ceil"),
    "LpNormalization": one("LpNormalization", axis=2, p=2),
    "InstanceNormalization": one("InstanceNormalization", normal(4), normal(4)),
    "ReduceMin": (
        [("Abs", ["h"], ["a"], {}), ("ReduceMin", ["a", "c"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        {"c": ints(2)},
    ),
    "Softplus": one("Softplus"),
    "Sin": one("Sin"),
    "Abs": one("Abs"),
    "linear": one("Resize", *SIZES, mode="linear", axes=[2, 3]),
    "cubic": one("Resize", *SIZES, mode="cubic", axes=[2, 3]),
    "backwards": one("Slice", ints(-1), ints(-99), ints(2), ints(-1)),
    "mirrored": one("Pad", MIRROR, mode="reflect"),
    "repeated": one("Pad", MIRROR, mode="edge"),
}
KEPT = ("Ceil",)


def network(name: str) -> Any:
    nodes, constants = TAILS[name]
    # Of its own, so that another case changes nothing here.
    weights = np.random.default_rng(5).standard_normal((4, 3, 3, 3)).astype(np.float32)
    made = graphs.graph([("Conv", ["x", "w"], ["h"], {}), *nodes], {"w": weights, **constants},
                        input_shape=(2, 3, 8, 8))  # fmt: skip
    return prepare(made)


@pytest.mark.skipif(importlib.util.find_spec("paddle") is None, reason="Paddle Inference is the oracle")
@pytest.mark.parametrize("name", TAILS)
def test_all_files_give_what_is_simulated(tmp_path: Path, name: str) -> None:
    model, x = network(name), np.random.default_rng(6).standard_normal((2, 3, 8, 8)).astype(np.float32) + 0.5
    placement = place(model, "paddle_lite", PlacementOptions(skip_patterns=KEPT, scale_grid="short"))
    qparams = minmax_qparams(model, placement, x)
    with torch.no_grad():
        module = GraphModule(model, placement=placement, qparams=qparams).eval()
        simulated = module(torch.from_numpy(x)).numpy()
        plain = GraphModule(model).eval()(torch.from_numpy(x)).numpy()
    assert simulated.shape == plain.shape
    assert name == "ArgMax" or not np.array_equal(simulated, plain), "nothing was rounded"
    write_paddle(model, placement, qparams, tmp_path / "m.pdmodel", tmp_path / "m.pdiparams",
                 json_path=tmp_path / "m.json")  # fmt: skip
    write_onnx(model, placement, qparams, tmp_path / "m.onnx")
    # cubic sums of 16 products: float32's last bits differ between the three
    exact = name not in ("cubic", "linear", "LpNormalization", "InstanceNormalization", "ConvTranspose")
    step = 0.0 if exact else float(np.abs(simulated).max()) / 127
    for suffix, engine in (("pdmodel", "paddle"), ("json", "paddle"), ("onnx", "onnxruntime")):
        (actual,) = open_session(tmp_path / f"m.{suffix}", engine, threads=1, optimize=False).run({"x": x})
        difference = np.abs(actual.astype(np.float64) - simulated)
        assert difference.max() <= step + 1e-6
        assert (difference > 1e-6).mean() < 0.01


@pytest.mark.parametrize("name", KEPT)
def test_what_has_no_rule_names_the_pattern(name: str) -> None:
    with pytest.raises(PlacementError, match=f"no int8 rule for '{name}'.*not_quant_pattern"):
        place(network(name), "paddle_lite")


#: name, size of a 6x6 map behind the Resize, mode, largest share of elements at which torch and ONNX Runtime differ.
#: Weights of the four neighbours that are multiples of a power of two are exact; others put a value that lies half-way
#: between two steps on either side, see `resize_by_factors`.
SCALED = [
    ("nearest", 16, "nearest", 0.0), ("twice", 12, "linear", 0.0), ("smaller", 5, "linear", 0.0),
    ("odd", 11, "linear", 0.02), ("one more", 7, "linear", 0.06),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "mode", "half_way"), SCALED)
def test_resizing_between_convolutions_runs_optimised(
    tmp_path: Path, name: str, size: int, mode: str, half_way: float
) -> None:
    """ONNX Runtime moves transposes through a Resize as if its sizes had an element for every axis.

    Behind its optimisations the Resize is computed on floats between integer convolutions: the same numbers.
    """
    how = {"mode": mode, "axes": [2, 3], "nearest_mode": "floor",
           "coordinate_transformation_mode": "asymmetric" if mode == "nearest" else "half_pixel"}  # fmt: skip
    made = graphs.graph(
        [("Conv", ["x", "w"], ["a"], {}), ("Sigmoid", ["a"], ["h"], {}), ("Resize", ["h", "", "", "size"], ["m"], how),
         ("Conv", ["m", "v"], ["y"], {})],
        {"w": normal(8, 3, 3, 3), "v": np.eye(8, dtype=np.float32)[:, :, None, None], "size": ints(size, size)},
        input_shape=(2, 3, 8, 8),
    )  # fmt: skip
    model, x = prepare(made), normal(2, 3, 8, 8)
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="short"))
    qparams = minmax_qparams(model, placement, x)
    with torch.no_grad():
        simulated = GraphModule(model, placement=placement, qparams=qparams).eval()(torch.from_numpy(x)).numpy()
    write_onnx(model, placement, qparams, tmp_path / "m.onnx")
    plain, optimised = (
        open_session(tmp_path / "m.onnx", "onnxruntime", threads=1, optimize=optimize).run({"x": x})[0]
        for optimize in (False, True)
    )
    np.testing.assert_array_equal(optimised, plain)
    assert plain.shape == simulated.shape
    difference = np.abs(plain - simulated) / float(qparams["y"].scale)
    assert difference.max() <= 1.01
    assert (difference > 0.5).mean() <= half_way


REFUSED: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "CumSum": one("CumSum", np.array(2, np.int64)),
    "OneHot": (
        [("ArgMax", ["h"], ["i"], {"axis": 1}), ("OneHot", ["i", "d", "v"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        {"d": np.array(4, np.int64), "v": np.float32([0, 1])},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rare_operators_are_refused_by_name(name: str) -> None:
    nodes, constants = REFUSED[name]
    made = graphs.graph([("Conv", ["x", "w"], ["h"], {}), *nodes], {"w": normal(4, 3, 3, 3), **constants},
                        input_shape=(2, 3, 8, 8))  # fmt: skip
    with pytest.raises(PlacementError, match=f"no int8 rule for '{name}' .*not_quant_pattern"):
        place(prepare(made), "paddle_lite")


@pytest.mark.parametrize("number", [-1e9, 1e4, -np.inf, np.nan])
def test_a_mask_has_no_grid(number: float) -> None:
    nodes, _ = TAILS["Where"]
    nodes = [("Where", ["b", "h", "n"], ["m"], {}) if node[0] == "Where" else node for node in nodes]
    made = graphs.graph([("Conv", ["x", "w"], ["h"], {}), *nodes],
                        {"w": normal(4, 3, 3, 3), "z": np.float32(0.25), "n": np.float32(number)},
                        input_shape=(2, 3, 8, 8))  # fmt: skip
    with pytest.raises(PlacementError, match=r"\(Where\) writes .* no int8 grid holds both; keep it float"):
        place(prepare(made), "paddle_lite")


@pytest.mark.parametrize("name", ["ConvTranspose", "LpNormalization", "TopK", "Where", "cube", "root"])
def test_the_integer_model_computes_them_in_float_and_says_so(name: str) -> None:
    model, x = network(name), np.random.default_rng(6).standard_normal((2, 3, 8, 8)).astype(np.float32) + 0.5
    placement = place(model, "paddle_lite", PlacementOptions(scale_grid="short"))
    qparams = minmax_qparams(model, placement, x)
    with torch.no_grad():
        simulated = GraphModule(model, placement=placement, qparams=qparams).eval()(torch.from_numpy(x)).numpy()
    integer = IntegerModel(model, placement, qparams)
    step = float(np.abs(simulated).max()) / 127
    difference = np.abs(integer.predict(x) - simulated)
    assert difference.max() <= step + 1e-6
    assert (difference > 1e-6).mean() < 0.01
    kind = {"cube": "Pow", "root": "Pow"}.get(name, name)
    assert kind in {node.operator for node in integer.float_nodes}
