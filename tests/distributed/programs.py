"""What the processes of the tests do: python -m tests.distributed.programs <name> <arguments>."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fullquant.cli.console import one_line_errors, show_log
from fullquant.distributed import World, joined
from fullquant.errors import ConfigError


def collectives() -> None:
    """Prints what each collective gives."""
    with joined("cpu"):  # parting and meeting again
        pass
    with joined("cpu") as (world, device):
        found = _collected(world, device)
        if world.first:
            time.sleep(8 * float(os.environ["FULLQUANT_HEARTBEAT"]))  # longer than a dead process is waited for
    print(json.dumps(found))


def _collected(world: World, device: str | None) -> dict[str, Any]:
    rank = world.rank
    return {
        "device": device,
        "sum": world.sum(np.arange(3) + rank).tolist(), "min": float(world.min(rank + 0.5)),
        "max": world.max([rank, -rank]).tolist(), "mean": world.mean(float(rank)),
        "gather": world.gather(str(rank)), "broadcast": world.broadcast({"from": rank}),
        "every": [world.every(True), world.every(world.first)],
        "in_order": world.in_order(world.own("abc")), "first": world.on_first(lambda: os.getpid()) > 0,
        "node": world.first_on_node(lambda: rank), "refused": _refused(world),
    }  # fmt: skip


def _refused(world: World) -> str:
    def refuse() -> None:
        raise ConfigError(f"found out by process {world.rank}")

    try:
        world.on_first(refuse)
    except ConfigError as error:
        return str(error)
    return ""


def failing(how: str) -> None:
    """One or both processes fail as told."""
    with one_line_errors(), joined("cpu") as (world, _):
        world.barrier()
        _fail(how, world)


def _fail(how: str, world: World) -> None:
    if how == "alike":
        raise ConfigError("a wrong key")
    if how == "one" and world.rank == 1:
        raise ConfigError("a wrong file")
    if how == "busy" and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed_first" and world.first:
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "busy":
        time.sleep(0.05)
    world.barrier()


# ---- the stages ----------------------------------------------------------------------------------------------------


def stages(folder: str) -> None:
    """Calibrates and trains in several ways; writes what comes out, by rank."""
    from tests.distributed import toys

    with joined("cpu") as (world, _):
        toys.write_all(Path(folder), world)


def whole(config: str, save_dir: str) -> None:
    """quantize() as run.py calls it, then AutoCompression with a user's loader and callback; prints the results."""
    import torch

    from tests.distributed import toys

    show_log()
    with joined("cpu") as (world, _):
        found = toys.quantized(config, save_dir, world)
        found["threads"] = torch.get_num_threads()
    print(json.dumps(found))


def main(name: str, *arguments: str) -> None:
    """Runs the program of that name."""
    programs: dict[str, Any] = {
        "collectives": collectives, "failing": failing, "stages": stages, "whole": whole,
    }  # fmt: skip
    programs[name](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
