"""The integer reference behind the interface of the sessions: float images in, float outputs out, integers between."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from fullquant.errors import ModelError
from fullquant.numerics.integer import Rounding
from fullquant.numerics.qparams import FloatArray, QParams
from fullquant.placement.decision import Placement
from fullquant.runtime.integer.plan import Planner, Step
from fullquant.runtime.integer.tensors import Array, IntegerTensor, to_integer


@dataclass(frozen=True)
class FloatNode:
    """A node whose result, or whose whole arithmetic, is float, and why."""

    node: str
    operator: str
    reason: str


class IntegerModel:
    """A placed graph: images are quantized, then every placed tensor is computed from integers with integers.

    rounding: how sums become 8-bit integers again, see numerics.integer.
    Raises AccumulatorOverflowError, naming the node, where a bias or, while it runs, a sum does not fit into 32 bits.
    """

    engine = "integer"

    def __init__(
        self, model: ir.Model, placement: Placement, qparams: Mapping[str, QParams], *,
        rounding: Rounding = "nearest_even",
    ) -> None:  # fmt: skip
        graph = model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ModelError(
                f"a classifier has one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}"
            )
        self.input_names: tuple[str, ...] = (str(graph.inputs[0].name),)
        self.output_names: tuple[str, ...] = (str(graph.outputs[0].name),)
        self._planner = Planner(graph, placement, qparams, rounding)
        self._steps: list[Step] = self._planner.steps()

    @property
    def float_nodes(self) -> tuple[FloatNode, ...]:
        """What is computed in float, in order of computation; empty for a fully integer model."""
        return tuple(FloatNode(str(s.node.name), s.node.op_type, s.why) for s in self._steps if s.why)

    @property
    def integer_nodes(self) -> int:
        """How many steps, a layer with its clamp being one, compute integers from integers."""
        return sum(not step.why for step in self._steps)

    def placed(self) -> dict[str, QParams]:
        """{tensor: its grid} of every computed tensor that is held in integers, in order of computation."""
        names = [self.input_names[0], *(name for step in self._steps for name in step.outputs)]
        return {name: self._planner.grid(name) for name in names if self._planner.decision(name) is not None}

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: images [N, C, H, W]}; one output array, float32."""
        (images,) = feeds.values()
        return [self.predict(images)]

    def predict(self, images: FloatArray) -> FloatArray:
        """images [N, C, H, W] -> outputs [N, classes]: the real numbers of the output's integers."""
        output = self.output_names[0]
        found = self.tensors(images, keep=(output,))[output]
        return found.real() if isinstance(found, IntegerTensor) else found

    def tensors(self, images: FloatArray, keep: Collection[str] | None = None) -> dict[str, IntegerTensor | FloatArray]:
        """The tensors named in `keep`, all that are held in integers by default: integers where there are any."""
        wanted = set(self.placed() if keep is None else keep)
        integers: dict[str, IntegerTensor] = {}
        floats: dict[str, Array] = {}
        kept: dict[str, IntegerTensor | FloatArray] = {}
        self._store(self.input_names[0], np.asarray(images, dtype=np.float32), integers, floats)
        kept |= {name: integers.get(name, floats.get(name)) for name in wanted & {self.input_names[0]}}  # type: ignore[misc]
        with torch.inference_mode():
            for step in self._steps:
                values = [integers[r.tensor] if r.integer else _real(r.tensor, integers, floats) for r in step.reads]
                for name, array in zip(step.outputs, step.run(values), strict=True):
                    if step.integer:
                        integers[name] = IntegerTensor(array, self._planner.grid(name))
                    else:
                        self._store(name, array, integers, floats)
                    if name in wanted:
                        kept[name] = integers[name] if name in integers else floats[name]
                for name in step.free:
                    integers.pop(name, None)
                    floats.pop(name, None)
        missing = sorted(wanted - kept.keys())
        if missing:
            raise ModelError(f"no tensor {missing[0]!r} is computed; `fullquant inspect --tensors` lists them")
        return kept

    def reals(self, images: FloatArray) -> dict[str, FloatArray]:
        """The real numbers of all tensors that are held in integers."""
        return {n: t.real() if isinstance(t, IntegerTensor) else t for n, t in self.tensors(images).items()}

    def _store(
        self, name: str, array: Array, integers: dict[str, IntegerTensor], floats: dict[str, Array]
    ) -> None:  # fmt: skip
        """A float result: rounded where the tensor is placed, kept as it is where somebody reads that."""
        decision = self._planner.decision(name)
        if decision is not None:
            integers[name] = to_integer(array, self._planner.grid(name))
        if decision is None or decision.consumers is not None:
            floats[name] = array


def _real(name: str, integers: Mapping[str, IntegerTensor], floats: Mapping[str, Array]) -> Array:
    return floats[name] if name in floats else integers[name].real()
