"""The processes of a run as one of them sees it, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fullquant.errors import FullquantError

T = TypeVar("T")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class World:
    """One process among `size`: its number, and its number among those of its machine.

    All processes must call the same collectives in the same order. With one process each is the identity.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"process {self.rank} of {self.size}")
        if not 0 <= self.local_rank < self.local_size <= self.size:
            raise ValueError(f"process {self.local_rank} of {self.local_size} on this machine, {self.size} in all")

    @property
    def first(self) -> bool:
        """Whether this is process 0, which alone logs and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list that all processes have: positions rank, rank + size, ..."""
        return items if self.alone else items[self.rank :: self.size]

    def keep_threads(self) -> None:
        """Gives PyTorch this process's share of the cores again, once numba has started its threads.

        Both use one OpenMP library, and numba tells it at its start to use as many threads as there are cores.
        """
        if not self.alone:
            from fullquant.distributed import group

            group.keep_threads()

    # ---- collectives -------------------------------------------------------------------------------------------

    def sum(self, values: npt.ArrayLike) -> Array:
        """The sum over all processes, element by element; float64 or int64, shape of `values`."""
        return self._reduced(values, "sum")

    def min(self, values: npt.ArrayLike) -> Array:
        """The smallest of all processes, element by element."""
        return self._reduced(values, "min")

    def max(self, values: npt.ArrayLike) -> Array:
        """The largest of all processes, element by element."""
        return self._reduced(values, "max")

    def mean(self, value: float) -> float:
        """The mean over all processes of one number. NaN and infinities of any process show in it."""
        return value if self.alone else float(self.sum(value)) / self.size

    def every(self, condition: bool) -> bool:
        """Whether the condition holds in every process."""
        return condition if self.alone else bool(self.min(int(condition)))

    def _reduced(self, values: npt.ArrayLike, how: str) -> Array:
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind in "bui" else np.float64)
        if self.alone:
            return array
        from fullquant.distributed import group

        return group.reduced(array, how)

    def gather(self, item: T) -> list[T]:
        """What each process has, in order of the processes, in every process. Items are pickled."""
        if self.alone:
            return [item]
        from fullquant.distributed import group

        found: list[T] = group.gathered(item, self.size)
        return found

    def in_order(self, items: Sequence[T]) -> list[T]:
        """The list of which each process holds its `own` share, in every process. Items are pickled."""
        if self.alone:
            return list(items)
        shares: list[list[T]] = self.gather(list(items))
        longest = max(len(share) for share in shares)
        return [share[k] for k in range(longest) for share in shares if k < len(share)]

    def broadcast(self, item: T) -> T:
        """What process 0 has, in every process; the argument of the others does not matter. The item is pickled."""
        if self.alone:
            return item
        from fullquant.distributed import group

        found: T = group.shared(item)
        return found

    def share_state(self, tensors: Mapping[str, Any]) -> None:
        """Process 0's values into the tensors of all processes (a state_dict), in place."""
        if not self.alone:
            from fullquant.distributed import group

            group.share_state(tensors)

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self.sum(0)

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` returns in process 0, which alone runs it; its FullquantError is raised in all of them."""
        if self.alone:
            return action()
        result: Any = None
        error: FullquantError | None = None
        if self.first:
            try:
                result = action()
            except FullquantError as raised:
                error = raised
        kind, message, shared = self.broadcast((type(error), str(error), result))
        if error is not None:
            raise error
        if issubclass(kind, FullquantError):
            raise kind(message)
        found: T = shared
        return found

    def first_on_node(self, action: Callable[[], T]) -> T:
        """Runs `action` in one process of each machine, then in the others: for what leaves files in a cache."""
        if self.alone:
            return action()
        result = action() if self.local_rank == 0 else None
        self.barrier()
        return action() if self.local_rank > 0 else result  # type: ignore[return-value]


ALONE = World()
"""One process."""
