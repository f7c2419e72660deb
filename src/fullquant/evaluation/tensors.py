"""Two executions of one quantized graph, compared tensor by tensor in steps of each tensor's scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TensorDifference:
    """elements: how many were compared. equal: how many have the same integer. beyond: how many differ by more than
    one step. largest: the largest difference in steps."""

    tensor: str
    elements: int
    equal: int
    beyond: int
    largest: int

    @property
    def equal_share(self) -> float:
        return self.equal / self.elements if self.elements else 1.0

    @property
    def beyond_share(self) -> float:
        return self.beyond / self.elements if self.elements else 0.0


Execution = Callable[[npt.NDArray[np.float32]], Mapping[str, Array]]


class TensorComparison:
    """Adds up batches. grids: {tensor: its grid}, in order of computation."""

    def __init__(self, grids: Mapping[str, QParams]) -> None:
        self._grids = dict(grids)
        self._counts = {name: np.zeros(4, dtype=np.int64) for name in grids}

    def update(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """Real values by tensor, of the same shapes; tensors that one of the two does not have are left out.

        Values that are not yet rounded are rounded to the tensor's grid first.
        """
        for name, grid in self._grids.items():
            if name not in expected or name not in actual:
                continue
            first, second = affine.quantize(expected[name], grid), affine.quantize(actual[name], grid)
            if first.shape != second.shape:
                raise ValueError(f"{name!r} has the shapes {first.shape} and {second.shape}")
            steps = np.abs(first - second)
            count = self._counts[name]
            count[:3] += np.asarray([steps.size, np.count_nonzero(steps == 0), np.count_nonzero(steps > 1)])
            count[3] = max(count[3], int(steps.max(initial=0)))

    def rows(self) -> list[TensorDifference]:
        """The tensors that were compared, in order of computation."""
        return [TensorDifference(n, *(int(v) for v in c)) for n, c in self._counts.items() if c[0]]

    def first_departure(self, beyond: float = 0.001, steps: int | None = None) -> TensorDifference | None:
        """The first tensor of which more than that share differs by more than one step, or any by more than `steps`."""
        for row in self.rows():
            if row.beyond_share > beyond or (steps is not None and row.largest > steps):
                return row
        return None

    def worst(self) -> TensorDifference | None:
        """The tensor with the smallest share of equal elements."""
        return min(self.rows(), key=lambda row: row.equal_share, default=None)


def compare_tensors(
    expected: Execution, actual: Execution, grids: Mapping[str, QParams], batches: Iterable[npt.NDArray[np.float32]]
) -> TensorComparison:
    """Both executions, images [B, C, H, W] -> {tensor: real values}, on every batch.

    Simulated against integer: compare_tensors(Simulator(student).tensors, integer.reals, integer.placed(), batches).
    """
    comparison = TensorComparison(grids)
    for images in batches:
        comparison.update(expected(images), actual(images))
    return comparison
