"""A vision transformer of two layers, as exporters write it: class token, positions, attention, GELU, LayerNorm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.graphs import graph

WIDTH, HEADS, LAYERS, CLASSES = 32, 4, 2, 10
INPUT = (3, 16, 16)
_Node = tuple[str, list[str], list[str], dict[str, Any]]


class _Maker:
    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(11)

    def constant(self, array: np.ndarray | list[int]) -> str:
        name = f"c{len(self.constants)}"
        made = np.asarray(array)
        self.constants[name] = made.astype(np.int64 if made.dtype.kind == "i" else np.float32)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.random.normal(0, scale, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append((kind, list(inputs), [name], attributes))
        return name

    def linear(self, x: str, rows: int, columns: int) -> str:
        product = self.op("MatMul", x, self.normal(rows, columns, scale=1.5 / np.sqrt(rows)))
        return self.op("Add", product, self.normal(columns, scale=0.2))

    def norm(self, x: str) -> str:
        gain = self.constant(self.random.uniform(0.5, 1.5, WIDTH))
        return self.op("LayerNormalization", x, gain, self.normal(WIDTH, scale=0.2), axis=-1)

    def part(self, x: str, index: int, axis: int) -> str:
        bounds = [self.constant([number]) for number in (index, index + 1, axis)]
        return self.op("Squeeze", self.op("Slice", x, *bounds), self.constant([axis]))


def tiny_vit() -> ir.Model:
    """x [N, 3, 16, 16] -> logits [N, 10]; the batch of the class token is asked of a tensor on the way."""
    m = _Maker()
    size = WIDTH // HEADS
    patches = m.op("Conv", "x", m.normal(WIDTH, 3, 4, 4, scale=0.3), m.normal(WIDTH), strides=[4, 4])
    flat = m.op("Transpose", m.op("Reshape", patches, m.constant([0, WIDTH, -1])), perm=[0, 2, 1])
    batch = m.op("Slice", m.op("Shape", flat), m.constant([0]), m.constant([1]), m.constant([0]))
    shape = m.op("Max", m.op("Concat", batch, m.constant([-1, -1]), axis=0), m.constant([1]))
    tokens = m.op("Concat", m.op("Expand", m.normal(1, 1, WIDTH), shape), flat, axis=1)
    x = m.op("Add", tokens, m.normal(1, 17, WIDTH, scale=0.3))
    for _ in range(LAYERS):
        packed = m.op("Reshape", m.linear(m.norm(x), WIDTH, 3 * WIDTH), m.constant([0, 17, 3, HEADS, size]))
        q, k, v = (m.part(m.op("Transpose", packed, perm=[2, 0, 3, 1, 4]), index, 0) for index in range(3))
        scores = m.op("MatMul", q, m.op("Transpose", k, perm=[0, 1, 3, 2]))
        weights = m.op("Softmax", m.op("Mul", scores, m.constant(np.float32(size**-0.5))), axis=-1)
        mixed = m.op("Transpose", m.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        x = m.op("Add", x, m.linear(m.op("Reshape", mixed, m.constant([0, 17, WIDTH])), WIDTH, WIDTH))
        x = m.op("Add", x, m.linear(m.op("Gelu", m.linear(m.norm(x), WIDTH, 2 * WIDTH)), 2 * WIDTH, WIDTH))
    m.nodes[-1][2][:] = ["last"]
    logits = m.linear(m.part(m.norm("last"), 0, 1), WIDTH, CLASSES)
    m.nodes[-1][2][:] = ["y"]
    assert logits
    return graph(m.nodes, m.constants, input_shape=("N", *INPUT))
