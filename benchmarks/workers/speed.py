"""How fast this machine multiplies and copies: a large float matrix product, and a copy beyond every cache."""

from __future__ import annotations

import time

import torch
from gate import Answers

from fullquant.runtime.devices import prepare_runtime

_SIDE = 2048
_ELEMENTS = 2**26
_REPEATS = 7


def best(function: object, *arguments: torch.Tensor) -> float:
    """The least of some runs: a limit is what the machine can do when nothing is in the way."""
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        function(*arguments)  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    answers = Answers()
    prepare_runtime("cpu")
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    product = best(torch.mm, a, b)
    source, target = torch.rand(_ELEMENTS), torch.rand(_ELEMENTS)
    copy = best(target.copy_, source)
    answers.say(multiplications_per_s=_SIDE**3 / product, bytes_per_s=2 * 4 * _ELEMENTS / copy)


if __name__ == "__main__":
    main()
