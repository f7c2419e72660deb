"""What a launcher says of its processes: the variables of torchrun and of paddle.distributed.launch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fullquant.distributed.world import World
from fullquant.errors import ConfigError

_Variables = Mapping[str, str]


@dataclass(frozen=True)
class Meeting:
    """A world, and where its processes meet.

    host, port: of the store. hosted: the launcher keeps the store; otherwise process 0 does.
    attempt: how often the launcher has started these processes anew.
    """

    world: World
    host: str = ""
    port: int = 0
    hosted: bool = False
    attempt: int = 0


def from_environment(variables: _Variables | None = None) -> Meeting:
    """The processes that the launcher has started; one where there is no launcher. ConfigError: contradictory ones.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Job schedulers set some
    of them for nodes too, so that the variables of paddle.distributed.launch count where LOCAL_RANK is missing.
    """
    found = os.environ if variables is None else variables
    if _is_paddle(found) and "LOCAL_RANK" not in found:
        return _paddle(found)
    return _torch(found) if _number(found, "WORLD_SIZE", 1) > 1 else Meeting(World())


def _is_paddle(variables: _Variables) -> bool:
    return "PADDLE_TRAINER_ID" in variables and bool(variables.get("PADDLE_TRAINER_ENDPOINTS"))


def _torch(variables: _Variables) -> Meeting:
    size = _number(variables, "WORLD_SIZE")
    rank = _number(variables, "RANK")
    if not variables.get("MASTER_ADDR"):
        raise ConfigError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set; start the processes with torchrun")
    return Meeting(
        _world(rank, size, _number(variables, "LOCAL_RANK", rank), _number(variables, "LOCAL_WORLD_SIZE", size)),
        variables["MASTER_ADDR"],
        _number(variables, "MASTER_PORT"),
        hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_number(variables, "TORCHELASTIC_RESTART_COUNT", 0),
    )


def _paddle(variables: _Variables) -> Meeting:
    """The launcher of PaddlePaddle 2 and 3: every process has an endpoint, the first one belongs to process 0.

    PADDLE_LOCAL_RANK and PADDLE_LOCAL_SIZE are those of newer launchers, PADDLE_RANK_IN_NODE is of most; without them
    the endpoints on this process's host are counted. Source: paddle/distributed/launch/controllers/collective.py.
    """
    endpoints = [part.strip() for part in variables["PADDLE_TRAINER_ENDPOINTS"].split(",") if part.strip()]
    rank, size = _number(variables, "PADDLE_TRAINER_ID"), _number(variables, "PADDLE_TRAINERS_NUM", len(endpoints))
    if size == 1:
        return Meeting(World())
    if len(endpoints) != size or not 0 <= rank < size:
        raise ConfigError(
            f"PADDLE_TRAINER_ID {rank} and PADDLE_TRAINERS_NUM {size} do not fit the {len(endpoints)} endpoints of "
            "PADDLE_TRAINER_ENDPOINTS; start the processes with python -m paddle.distributed.launch"
        )
    own = variables.get("PADDLE_CURRENT_ENDPOINT") or endpoints[rank]
    neighbours = [k for k, endpoint in enumerate(endpoints) if _host(endpoint) == _host(own)]
    counted = neighbours.index(rank) if rank in neighbours else 0
    local_rank = _number(variables, "PADDLE_LOCAL_RANK", _number(variables, "PADDLE_RANK_IN_NODE", counted))
    local_size = _number(variables, "PADDLE_LOCAL_SIZE", max(len(neighbours), 1))
    host, _, port = endpoints[0].rpartition(":")
    return Meeting(
        _world(rank, size, local_rank, local_size), host.strip("[]"), _number({"port": port}, "port"),
        attempt=_number(variables, "PADDLE_RESTART_COUNT", 0),
    )  # fmt: skip


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


def _world(rank: int, size: int, local_rank: int, local_size: int) -> World:
    try:
        return World(rank, size, local_rank, local_size)
    except ValueError as error:
        raise ConfigError(f"the launcher's variables contradict each other: {error}") from error


def _number(variables: _Variables, name: str, default: int | None = None) -> int:
    text = variables.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        what = f"{name} is {text!r}, not a number" if text else f"{name} is not set"
        raise ConfigError(f"{what}; start the processes with torchrun or paddle.distributed.launch") from None


def cuda_index(world: World, devices: int, variables: _Variables | None = None) -> int:
    """The number of this process's GPU among the visible ones.

    FLAGS_selected_gpus is what paddle.distributed.launch --gpus gives to each process, relative to the visible GPUs;
    otherwise it is local_rank, modulo their number.
    """
    chosen = (os.environ if variables is None else variables).get("FLAGS_selected_gpus", "")
    if chosen.isdigit() and int(chosen) < devices:
        return int(chosen)
    return world.local_rank % max(devices, 1)


def threads_of(world: World, cores: int, variables: _Variables | None = None) -> int | None:
    """CPU threads for this process: its share of the cores; None where the user has set OMP_NUM_THREADS.

    torchrun itself sets 1 where nothing was set; a 1 that comes with torchrun is therefore nobody's wish.
    """
    found = os.environ if variables is None else variables
    given = found.get("OMP_NUM_THREADS")
    if given and not (given == "1" and "TORCHELASTIC_RUN_ID" in found):
        return None
    return max(1, cores // world.local_size)
