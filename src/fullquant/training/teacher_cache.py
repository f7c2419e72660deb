"""The teacher's outputs on disk: an image that comes again, to the bit, is not shown to the teacher again.

An image is known by its content, so that any data loader will do and a stale entry cannot be taken. With augmentation
an image comes again if it has a limited number of versions (Global.augment.versions). Physical limit of a hit: hashing
the image (about 1 GB/s on one core; 0.6 ms for 3x224x224) and reading the outputs, against a forward pass.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Tensor = torch.Tensor
log = logging.getLogger("fullquant")
Compute = Callable[[Tensor], dict[str, Tensor]]


class TeacherCache:
    """Outputs by image, in one file for each node of the teacher, up to `limit` bytes in all; then it stays as it is.

    folder: is made, and removed by `close`.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        self._slots: dict[bytes, int] = {}
        self._files: dict[str, np.memmap[tuple[int, ...], np.dtype[np.float32]]] = {}
        self._capacity: int | None = None

    @staticmethod
    def keys(images: npt.NDArray[np.float32]) -> list[bytes]:
        """A key for each image of [N, C, H, W]: BLAKE2b of its bytes, 16 long."""
        dense = np.ascontiguousarray(images)
        return [hashlib.blake2b(memoryview(image).cast("B"), digest_size=16).digest() for image in dense]

    def outputs(self, keys: Sequence[bytes], images: Tensor, compute: Compute) -> dict[str, Tensor]:
        """{node: tensor [N, ...]} for the images; `compute` is given those alone that are not known."""
        missing = [row for row, key in enumerate(keys) if key not in self._slots]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if len(missing) == len(keys):
            found = compute(images)
            self._store(list(keys), found)
            return found
        rows = torch.tensor(missing, dtype=torch.long, device=images.device)
        computed = compute(images[rows]) if missing else {}
        known = [row for row, key in enumerate(keys) if key in self._slots]
        slots = [self._slots[keys[row]] for row in known]
        found = {}
        for node, file in self._files.items():
            stored = torch.from_numpy(file[slots].copy()).to(images.device)
            whole = stored.new_empty((len(keys), *stored.shape[1:]))
            whole[torch.tensor(known, device=images.device)] = stored
            if missing:
                whole[rows] = computed[node].to(whole.dtype)
            found[node] = whole
        if missing:
            self._store([keys[row] for row in missing], computed)
        return found

    def _store(self, keys: Sequence[bytes], outputs: dict[str, Tensor]) -> None:
        if self._capacity is None:
            self._open(outputs)
        assert self._capacity is not None
        for row, key in enumerate(keys):
            if key in self._slots or len(self._slots) >= self._capacity:
                continue
            slot = len(self._slots)
            for node, tensor in outputs.items():
                self._files[node][slot] = tensor[row].detach().float().cpu().numpy()
            self._slots[key] = slot

    def _open(self, outputs: dict[str, Tensor]) -> None:
        entry = sum(4 * tensor[0].numel() for tensor in outputs.values())
        self._capacity = int(self.limit // entry)
        if self._capacity == 0:
            log.warning("one image's outputs take %d bytes: Distillation.teacher_cache_gb holds none", entry)
            self._files = {}
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, (node, tensor) in enumerate(outputs.items()):
            # A sparse file: it takes the room of what is written.
            shape = (self._capacity, *tensor.shape[1:])
            self._files[node] = np.memmap(self.folder / f"node{number}.f32", np.float32, "w+", shape=shape)

    def close(self) -> None:
        """Removes the files."""
        self._files.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
