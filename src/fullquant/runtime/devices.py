"""Set-up of the process before any tensor is made: device, threads, allocator, seed."""

from __future__ import annotations

import logging

import torch

from fullquant.errors import ConfigError
from fullquant.runtime import kernels, memory

log = logging.getLogger("fullquant")


def prepare_runtime(device: str | None = None, *, seed: int = 0) -> torch.device:
    """The device to work on, with allocator, kernel threads and random numbers set up.

    device: None takes the GPU where there is one; "gpu" is another name for "cuda". ConfigError if it is not there.
    """
    chosen = _choose(device)
    if chosen.type == "cpu":
        memory.keep_large_blocks()
        # Numba's start gives the OpenMP library, which PyTorch uses as well, all cores: what was set is set again.
        threads = torch.get_num_threads()
        kernels.set_threads(threads)
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return chosen


def _choose(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; known: cpu, cuda, cuda:<number>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but this PyTorch sees no GPU; use --devices cpu")
    return chosen
