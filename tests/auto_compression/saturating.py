"""A layer whose sums of two products exceed 16 bits, run in ONNX Runtime and explained; started with VNNI hidden.

python -m tests.auto_compression.saturating FOLDER: prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from fullquant.auto_compression.differences import explain
from fullquant.readers import find_model, read_model
from fullquant.readers.quantized import split_quantizers
from fullquant.runtime.departure import Simulation
from fullquant.writers.onnx_qdq import write_onnx
from tests.graph.toy_models import parse
from tests.runtime.integer.models import Placed, placed

# ReLU in front: every activation is positive, and so is every weight.
_GRAPH = (
    "g (float[N,6,9,9] x, float[16,6,1,1] v, float[8,16,3,3] w, float[8] b) => (float[N,C,H,W] y)"
    " { c = Conv(x, v) r = Relu(c) y = Conv <pads = [1,1,1,1]> (r, w, b) }"
)


def layer(*, reduce_range: bool = False) -> Placed:
    """Two convolutions; both multiply large activations by large weights of one sign."""
    rng = np.random.default_rng(5)
    weights = {
        "v": rng.uniform(0.5, 1, (16, 6, 1, 1)),
        "w": rng.uniform(0.6, 1, (8, 16, 3, 3)),
        "b": rng.normal(size=8),
    }
    return placed(parse(_GRAPH, **weights), reduce_range=reduce_range)


def looked_at(folder: Path, *, reduce_range: bool) -> dict[str, object]:
    """What `explain` finds in the file of `layer`, optimised ONNX Runtime."""
    one = layer(reduce_range=reduce_range)
    path = folder / f"layer_{reduce_range}.onnx"
    write_onnx(one.model, one.placement, one.qparams, path)
    simulation = Simulation(split_quantizers(read_model(path)))
    found = explain(simulation, find_model(path), "onnxruntime", True, np.abs(one.images))
    leap, evidence = found.departure.leap, found.evidence
    return {
        "steps": 0 if leap is None else leap.steps, "tensor": None if leap is None else leap.tensor,
        "saturates": found.saturates, "cause": found.cause,
        "evidence": None if evidence is None else [evidence.exact, evidence.saturated],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({str(reduce): looked_at(Path(sys.argv[1]), reduce_range=reduce) for reduce in (False, True)}))
