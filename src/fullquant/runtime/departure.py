"""Where a runtime leaves the simulation: the first tensor whose integers differ.

A runtime that fuses operators computes something else when one of the tensors between them becomes an output of the
model. So a tensor counts as seen only where the model's own output, of the copy with that tensor as an output too, is
bit for bit what it is without. First all tensors are asked for at once, which leaves ONNX Runtime and every unoptimised
runtime alone; where that changes the output, one at a time, by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fullquant.errors import EngineError
from fullquant.numerics import affine
from fullquant.numerics.qparams import IntArray, QParams
from fullquant.readers import ModelFiles
from fullquant.readers.quantized import QuantizedGraph
from fullquant.runtime.executor import GraphModule
from fullquant.runtime.probes import observe, probed

FloatArray = npt.NDArray[np.float32]

#: Steps that differences of single steps reach only after many layers.
FAR = 16


@dataclass(frozen=True)
class Difference:
    """A tensor as a runtime computes it, beside the simulation's, on the images that were looked at.

    operator: that makes it. steps: largest difference in steps of its grid. share: of its elements that differ.
    beyond: share of its elements that differ by more than one step.
    """

    tensor: str
    operator: str
    steps: int
    share: float
    beyond: float


@dataclass(frozen=True)
class Departure:
    """first: the first tensor that differs at all. leap: the first that differs by more than one step, far: by more
    than FAR steps. None: none does. Rounding alone grows slowly; what is far away at once was computed wrongly there.

    unseen: tensors right in front of `first` that the runtime has no place for: they lie inside its kernels.
    seen: how many tensors were looked at. whole: all at once, so that nothing before `first` differs; else bisected.
    """

    first: Difference | None
    leap: Difference | None
    unseen: tuple[str, ...]
    seen: int
    whole: bool
    far: Difference | None = None


class Simulation:
    """The integers of every tensor as the file means them, from the file."""

    def __init__(self, graph: QuantizedGraph) -> None:
        self.graph = graph
        self.module = GraphModule(graph.model, placement=graph.placement, qparams=graph.qparams)
        self.module.freeze()
        known = set(graph.places)
        #: Tensors that can be compared, in order of computation, the output at the end.
        names = dict.fromkeys((self.module.input_name, *self.module.tensor_names()))
        self.tensors = [name for name in names if name in known]

    def grid(self, tensor: str) -> QParams:
        """Of an activation."""
        return self.graph.qparams[self.graph.placement.scale_owner(tensor)]

    def integers(self, images: FloatArray) -> dict[str, IntArray]:
        """{tensor: q} for a batch."""
        with torch.inference_mode():
            _, kept = self.module(torch.from_numpy(np.ascontiguousarray(images)), keep=self.tensors)
        return {name: self.quantized(name, tensor.contiguous().numpy()) for name, tensor in kept.items()}

    def quantized(self, tensor: str, values: FloatArray) -> IntArray:
        """The integers that stand for values on the tensor's grid; NaN, which stands for none, counts as 0."""
        return affine.quantize(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf), self.grid(tensor))

    def producer(self, tensor: str) -> ir.Node | None:
        """The node that makes a tensor."""
        return next((node for node in self.graph.model.graph if any(v.name == tensor for v in node.outputs)), None)


@dataclass
class Bisection:
    """One file in one runtime, on a few images."""

    simulation: Simulation
    files: ModelFiles
    engine: str
    optimize: bool
    images: FloatArray
    expected: Mapping[str, IntArray] = field(init=False)
    output: FloatArray = field(init=False)
    found: dict[str, IntArray | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = self.simulation.integers(self.images)
        with probed(self.files, (), self.engine, optimize=self.optimize, threads=1) as session:
            self.output, _ = observe(session, self.images, ())

    def departure(self) -> Departure:
        """Raises EngineError where the runtime does not take the file."""
        tensors = self.simulation.tensors
        whole = self._see(tensors)
        if whole:
            differing = [tensor for tensor in tensors if self._differs(tensor, 0)]
            first = differing[0] if differing else None
            leap, far = (next((t for t in differing if self._differs(t, steps)), None) for steps in (1, FAR))
        else:
            first, leap, far = (self._bisect(steps) for steps in (0, 1, FAR))
        found = [None if tensor is None else self.difference(tensor) for tensor in (first, leap, far)]
        seen = sum(value is not None for value in self.found.values())
        return Departure(found[0], found[1], self._unseen_before(first), seen, whole, found[2])

    def integers(self, tensor: str) -> IntArray | None:
        """What the runtime computes; None where it has no place for the tensor."""
        if tensor not in self.found:
            self._see([tensor])
        return self.found[tensor]

    def difference(self, tensor: str) -> Difference:
        """Of a tensor that was seen."""
        actual, expected = self.found[tensor], self.expected[tensor]
        assert actual is not None
        distance = np.abs(actual - expected)
        node = self.simulation.producer(tensor)
        return Difference(
            tensor, "input" if node is None else node.op_type, int(distance.max(initial=0)),
            float(np.mean(distance > 0)), float(np.mean(distance > 1)),
        )  # fmt: skip

    def _see(self, tensors: Sequence[str]) -> bool:
        """Looks at tensors at once; True if that left the model's output as it is."""
        names = [self._place(tensor) for tensor in tensors]
        output = self.simulation.module.output_name  # a tensor too, unless the model's output stays float
        if tensors == [output]:
            self.found[tensors[0]] = self._as_integers(tensors[0], self.output)
            return True
        wanted = names[:-1] if tensors[-1] == output else names
        seen = False
        try:
            with probed(self.files, wanted, self.engine, optimize=self.optimize, threads=1) as session:
                outputs, values = observe(session, self.images, wanted)
                seen = bool(np.array_equal(outputs, self.output, equal_nan=True))
        except EngineError:
            pass
        if seen:
            values = {names[-1]: outputs, **values}
            self.found |= {t: self._as_integers(t, values[n]) for t, n in zip(tensors, names, strict=True)}
        elif len(tensors) == 1:
            self.found[tensors[0]] = None
        return seen

    def _place(self, tensor: str) -> str:
        """oneDNN's passes take the quantizers out of a program, so that only the value in front of them is left."""
        before, after = self.simulation.graph.places[tensor]
        return before if self.engine == "paddle_onednn" else after

    def _as_integers(self, tensor: str, values: FloatArray) -> IntArray:
        expected = self.expected[tensor]
        return self.simulation.quantized(tensor, np.asarray(values, np.float32).reshape(expected.shape))

    def _differs(self, tensor: str, steps: int) -> bool:
        actual = self.integers(tensor)
        return actual is not None and bool(np.any(np.abs(actual - self.expected[tensor]) > steps))

    def _bisect(self, steps: int) -> str | None:
        """The first tensor that differs by more than `steps`, taking for granted that later ones do as well."""
        tensors = self.simulation.tensors
        low, high = -1, len(tensors) - 1
        if not self._differs(tensors[high], steps):
            return None
        while True:
            middle = next((k for k in _outwards(low, high) if self.integers(tensors[k]) is not None), None)
            if middle is None:
                return tensors[high]
            low, high = (low, middle) if self._differs(tensors[middle], steps) else (middle, high)

    def _unseen_before(self, tensor: str | None) -> tuple[str, ...]:
        if tensor is None:
            return ()
        found: list[str] = []
        for name in reversed(self.simulation.tensors[: self.simulation.tensors.index(tensor)]):
            if name not in self.found or self.found[name] is not None:
                break
            found.insert(0, name)
        return tuple(found)


def _outwards(low: int, high: int) -> Iterator[int]:
    """The numbers between low and high, both left out, from the middle outwards."""
    middle = (low + high) // 2
    for distance in range(high - low):
        for index in dict.fromkeys((middle - distance, middle + distance)):
            if low < index < high:
                yield index
