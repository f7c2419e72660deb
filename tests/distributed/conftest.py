"""What the process of the tests does itself, it does with one thread, as the processes that it starts do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fullquant.runtime import kernels


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these, threads mostly wait for each other."""
    before = torch.get_num_threads()
    kernels.set_threads(1)  # first: numba's start changes the threads of PyTorch
    torch.set_num_threads(1)
    yield
    kernels.set_threads(before)
    torch.set_num_threads(before)
