"""Two small networks for the ONNX writer's tests, with placements and scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fullquant.numerics.qparams import QParams
from fullquant.passes import prepare
from fullquant.placement.decision import Placement
from fullquant.placement.place import PlacementOptions, place
from tests.graph.toy_models import Array, feeds, parse
from tests.writers.qdq_oracle import calibrate

#: Convolution, ReLU, residual addition, pooling, classifier: everything that ONNX Runtime has integer kernels for.
RESIDUAL = """g (float[N,3,12,12] x, float[8,3,3,3] w0, float[8] b0, float[8,8,1,1] w1, float[8] b1, float[8,1,3,3] w2,
                 float[8] b2, float[16,4] w3, float[4] b3) => (float[N,4] y) {
  c0 = Conv <pads = [1,1,1,1]> (x, w0, b0)
  r0 = Relu(c0)
  c1 = Conv(r0, w1, b1)
  c2 = Conv <group = 8, pads = [1,1,1,1]> (r0, w2, b2)
  r2 = Clip(c2, nil, six)
  a2 = Add(c1, r2)
  r3 = Relu(a2)
  m3 = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r3)
  m4 = AveragePool <kernel_shape = [2,2], strides = [2,2]> (m3)
  k = Concat <axis = 1> (m4, m4)
  p = GlobalAveragePool(k)
  f = Flatten <axis = 1> (p)
  y = Gemm(f, w3, b3)
}"""

#: Squeeze-and-excitation, HardSwish, a constant operand, a softmax at the end.
MOBILE = """g (float[N,3,10,10] x, float[8,3,3,3] w0, float[8] b0, float[8,8,1,1] w1, float[8] b1, float[8,8,1,1] w2,
               float[8,5] w3, float[5] b3, float[1,1,5,5] c) => (float[N,5] y) {
  c0 = Conv <pads = [0,0,1,1], strides = [2,2]> (x, w0, b0)
  h0 = HardSwish(c0)
  p0 = GlobalAveragePool(h0)
  c1 = Conv(p0, w1, b1)
  g1 = HardSigmoid(c1)
  e1 = Mul(h0, g1)
  c2 = Conv(e1, w2)
  a2 = Add(c2, c)
  p2 = GlobalAveragePool(a2)
  f2 = Flatten <axis = 1> (p2)
  l3 = Gemm(f2, w3, b3)
  y = Softmax <axis = 1> (l3)
}"""

GRAPHS = {"residual": RESIDUAL, "mobile": MOBILE}


def toy(name: str) -> ir.Model:
    constants = {"nil": np.float32(0), "six": np.float32(1.5)} if "Clip" in GRAPHS[name] else {}
    return prepare(parse(GRAPHS[name], seed=7, **constants))


def quantized(
    model: ir.Model, target: str = "paddle_lite", **options: Any
) -> tuple[Placement, dict[str, QParams], list[Array]]:
    placement = place(model, target, PlacementOptions(**options))
    inputs = feeds(model)
    return placement, calibrate(model, placement, inputs[1]), inputs
