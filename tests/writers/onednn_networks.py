"""Small networks with one pattern each that Paddle's oneDNN passes treat in their own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.graphs import graph

Nodes = Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]]

_PAD: Mapping[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
_STEM: Nodes = [("Conv", ["x", "w1", "b1"], ["c"], _PAD), ("Relu", ["c"], ["r"], {})]
_HEAD: Nodes = [
    ("GlobalAveragePool", ["o"], ["pool"], {}), ("Flatten", ["pool"], ["flat"], {}),
    ("Gemm", ["flat", "wg", "bg"], ["y"], {}),
]  # fmt: skip


def _conv(source: str, letter: str, out: str) -> tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]:
    return "Conv", [source, f"w{letter}", f"b{letter}"], [out], {}


#: name -> the nodes between `r`, a ReLU's output [N, 8, 12, 12], and `o`.
BODIES: Mapping[str, Nodes] = {
    "relu": [_conv("r", "a", "a"), ("Relu", ["a"], ["s"], {}), _conv("s", "b", "o")],
    "relu6": [
        ("Conv", ["r", "wd", "ba"], ["a"], {**_PAD, "group": 8}), ("Clip", ["a", "zero", "six"], ["s"], {}),
        _conv("s", "b", "b"), ("Add", ["b", "r"], ["o"], {}),
    ],
    "residual": [
        _conv("r", "a", "a"), ("Relu", ["a"], ["s"], {}), _conv("s", "b", "b"), ("Add", ["r", "b"], ["t"], {}),
        ("Relu", ["t"], ["o"], {}),
    ],
    "projection": [
        _conv("r", "a", "a"), ("Relu", ["a"], ["s"], {}), _conv("s", "b", "b"), _conv("r", "c", "p"),
        ("Add", ["b", "p"], ["t"], {}), ("HardSwish", ["t"], ["o"], {}),
    ],
    "own input": [
        _conv("r", "a", "a"), ("Add", ["a", "r"], ["t"], {}), _conv("t", "b", "b"), ("Add", ["t", "b"], ["o"], {}),
    ],
    "two activations": [
        _conv("r", "a", "a"), ("Relu", ["a"], ["s"], {}), _conv("r", "b", "b"), ("Relu", ["b"], ["u"], {}),
        ("Add", ["s", "u"], ["t"], {}), ("Relu", ["t"], ["o"], {}),
    ],
    "function in a sum": [
        _conv("r", "a", "a"), ("HardSwish", ["a"], ["s"], {}), ("Add", ["r", "s"], ["t"], {}), _conv("t", "b", "o"),
    ],
    "padded shortcut": [
        ("Conv", ["r", "wd", "ba"], ["a"], {**_PAD, "group": 8}), ("Relu", ["a"], ["s"], {}), _conv("s", "b", "b"),
        ("MaxPool", ["r"], ["q"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}), ("Add", ["q", "b"], ["t"], {}),
        ("Relu", ["t"], ["o"], {}),
    ],
    "functions": [
        _conv("r", "a", "a"), ("HardSwish", ["a"], ["s"], {}), _conv("s", "b", "b"),
        ("HardSigmoid", ["b"], ["u"], {"alpha": 0.2}), ("Mul", ["u", "s"], ["m"], {}), _conv("m", "c", "d"),
        ("LeakyRelu", ["d"], ["l"], {"alpha": 0.1}), _conv("l", "a", "e"), ("Sigmoid", ["e"], ["o"], {}),
    ],
    "squeeze": [
        _conv("r", "a", "a"), ("HardSwish", ["a"], ["s"], {}), ("GlobalAveragePool", ["s"], ["q"], {}),
        _conv("q", "b", "b"), ("HardSigmoid", ["b"], ["u"], {"alpha": 0.2}), ("Mul", ["s", "u"], ["m"], {}),
        _conv("m", "c", "o"),
    ],
    "two kinds of readers": [
        _conv("r", "a", "a"), ("HardSwish", ["a"], ["s"], {}), _conv("s", "b", "b"), ("Sub", ["s", "b"], ["t"], {}),
        _conv("t", "c", "o"),
    ],
    "swish": [
        _conv("r", "a", "a"), ("Sigmoid", ["a"], ["s"], {}), ("Mul", ["a", "s"], ["m"], {}), _conv("m", "b", "o"),
    ],
    "pools": [
        ("AveragePool", ["r"], ["m"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        _conv("m", "a", "a"), ("MaxPool", ["a"], ["q"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        _conv("q", "b", "o"),
    ],
    "difference": [_conv("r", "a", "a"), _conv("a", "b", "b"), ("Sub", ["a", "b"], ["t"], {}), _conv("t", "c", "o")],
    "constants": [("Mul", ["r", "k"], ["m"], {}), ("Add", ["m", "k"], ["n"], {}), _conv("n", "a", "o")],
    "concat": [
        _conv("r", "a", "a"), ("Relu", ["a"], ["s"], {}), ("Concat", ["s", "r"], ["t"], {"axis": 1}),
        ("Slice", ["t", "start", "end", "axis"], ["u"], {}), _conv("u", "b", "o"),
    ],
    "tokens": [
        ("Reshape", ["r", "to_tokens"], ["q"], {}), ("Transpose", ["q"], ["k1"], {"perm": [0, 2, 1]}),
        ("MatMul", ["k1", "wt"], ["h"], {}), ("Add", ["h", "ba"], ["h1"], {}), ("Gelu", ["h1"], ["h2"], {}),
        ("MatMul", ["h2", "wu"], ["h3"], {}), ("Add", ["h3", "bb"], ["h4"], {}), ("Add", ["h4", "k1"], ["h5"], {}),
        ("Transpose", ["h5"], ["h6"], {"perm": [0, 2, 1]}), ("Reshape", ["h6", "to_image"], ["v"], {}),
        _conv("v", "c", "o"),
    ],
    "dead channels": [("Conv", ["r", "dead", "ba"], ["a"], {}), ("Relu", ["a"], ["s"], {}), _conv("s", "b", "o")],
}  # fmt: skip


def network(name: str, seed: int = 0) -> ir.Model:
    """images [N, 3, 12, 12] -> 5 numbers."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.4, shape).astype(np.float32)

    known = {f"w{letter}": normal(8, 8, 1, 1) for letter in "abc"} | {f"b{letter}": normal(8) for letter in "abc"}
    known |= {"w1": normal(8, 3, 3, 3), "b1": normal(8), "wd": normal(8, 1, 3, 3), "wg": normal(8, 5), "bg": normal(5)}
    known |= {"k": normal(1, 8, 1, 1), "wt": normal(8, 8), "wu": normal(8, 8), "dead": normal(8, 8, 1, 1)}
    known["dead"][2] = 0
    known |= {"zero": np.float32(0), "six": np.float32(6)}
    known |= {"start": np.array([4]), "end": np.array([12]), "axis": np.array([1])}
    known |= {"to_tokens": np.array([0, 8, 144]), "to_image": np.array([0, 8, 12, 12])}
    nodes = [*_STEM, *BODIES[name], *_HEAD]
    read = {source for _, inputs, _, _ in nodes for source in inputs}
    return graph(nodes, {n: a for n, a in known.items() if n in read}, input_shape=("N", 3, 12, 12))


def images(seed: int = 1, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)
