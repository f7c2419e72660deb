"""A Decision per tensor: is it int8, on which grid, whose scale, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fullquant.numerics.qparams import QuantSpec

Kind = Literal["activation", "weight", "bias"]


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor of the graph.

    tensor: the value's name in the canonical graph.
    kind: an activation is computed from the input; weights and biases are initializers.
    spec: the grid, or None where the tensor stays float. A bias has the int32 grid.
    shares: name of the tensor whose scale this one uses (never itself sharing), or None if it has its own.
    fused: the tensor lies inside a fused kernel (the convolution's output in front of its ReLU): no runtime rounds it,
        the simulation does not either. It has a scale (that of the fused output) because Paddle Lite wants one.
    consumers: names of the nodes that read the quantized tensor; None means all of them, and the graph outputs.
    reason: one sentence for the report.
    """

    tensor: str
    kind: Kind
    spec: QuantSpec | None
    reason: str
    shares: str | None = None
    fused: bool = False
    consumers: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"the decision for {self.tensor!r} has no reason")
        if self.shares == self.tensor:
            raise ValueError(f"{self.tensor!r} cannot share its own scale")
        if self.spec is None and (self.shares is not None or self.fused):
            raise ValueError(f"{self.tensor!r} stays float and so has no scale to share")


@dataclass(frozen=True)
class Placement:
    """All decisions for one graph on one target.

    onednn: whether the Paddle file is written for oneDNN's int8 passes; kept_float: names of the nodes that they are to
    leave in float.
    """

    target: str
    decisions: Mapping[str, Decision]
    onednn: bool = False
    kept_float: frozenset[str] = frozenset()

    def __getitem__(self, tensor: str) -> Decision:
        return self.decisions[tensor]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions.values())

    def get(self, tensor: str) -> Decision | None:
        """The decision for a tensor; None for tensors that hold no real numbers (shapes, axes)."""
        return self.decisions.get(tensor)

    def scale_owner(self, tensor: str) -> str:
        """The tensor whose scale `tensor` uses: itself, or the one that it shares with."""
        return self.decisions[tensor].shares or tensor
