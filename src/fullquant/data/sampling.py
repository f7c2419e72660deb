"""Which images a rank sees, in which order: a pure function of (seed, epoch, rank, world)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullquant.errors import ConfigError

IndexArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Sampling:
    """Batches of indices.

    The epoch's order (shuffled by seed and epoch, or as listed) is dealt out like cards: rank r of `world` gets
    positions r, r + world, ... So step k of all ranks together uses positions [k * B * world, (k + 1) * B * world),
    however many ranks share them. With drop_last every rank has the same number of full batches; without, nothing is
    left out or repeated and the last batches may be short.
    """

    count: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} is not one of 0..{self.world - 1}")
        if self.drop_last and self.count < self.batch_size * self.world:
            raise ConfigError(
                f"{self.count} images do not fill one batch of {self.batch_size} on {self.world} process(es); "
                "lower batch_size or give more images"
            )

    def __len__(self) -> int:
        """Number of batches of this rank in one epoch."""
        return -(-self.own_count // self.batch_size)

    @property
    def own_count(self) -> int:
        """Number of images of this rank in one epoch."""
        if self.drop_last:
            return self.count // self.world // self.batch_size * self.batch_size
        return len(range(self.rank, self.count, self.world))

    def order(self, epoch: int) -> IndexArray:
        """This rank's indices of one epoch."""
        indices: IndexArray = np.arange(self.count, dtype=np.int32 if self.count < 2**31 else np.int64)
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(indices)
        return indices if self.world == 1 else indices[self.rank :: self.world].copy()  # a view would keep them all

    def batches(self, epoch: int, start: int = 0) -> Iterator[IndexArray]:
        """The epoch's batches of indices from batch `start` on."""
        order = self.order(epoch)
        for batch in range(start, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
