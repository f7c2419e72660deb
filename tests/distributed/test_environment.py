"""The variables of both launchers, as their sources set them."""

from __future__ import annotations

import pytest

from fullquant.distributed import Meeting, World, from_environment
from fullquant.distributed.environment import cuda_index, threads_of
from fullquant.errors import ConfigError

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
PADDLE = {
    "PADDLE_MASTER": "10.0.0.1:40000", "PADDLE_GLOBAL_SIZE": "4", "PADDLE_LOCAL_SIZE": "2", "PADDLE_GLOBAL_RANK": "3",
    "PADDLE_LOCAL_RANK": "1", "PADDLE_NNODES": "2", "PADDLE_CURRENT_ENDPOINT": "10.0.0.2:40002",
    "PADDLE_TRAINER_ID": "3", "PADDLE_TRAINERS_NUM": "4", "PADDLE_RANK_IN_NODE": "1",
    "PADDLE_TRAINER_ENDPOINTS": "10.0.0.1:40001,10.0.0.1:40002,10.0.0.2:40001,10.0.0.2:40002",
}  # fmt: skip
# What launchers before PaddlePaddle 2.3 do not set.
NEWER = ("PADDLE_MASTER", "PADDLE_GLOBAL_SIZE", "PADDLE_LOCAL_SIZE", "PADDLE_GLOBAL_RANK", "PADDLE_LOCAL_RANK")


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


def test_torchrun() -> None:
    assert from_environment(TORCHRUN) == Meeting(World(5, 8, 1, 4), "10.0.0.1", 29500, hosted=True, attempt=2)


def test_variables_without_torchrun_itself() -> None:
    found = from_environment({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"})
    assert found == Meeting(World(1, 2, 1, 2), "localhost", 1234)


def test_paddle_meets_at_the_first_endpoint() -> None:
    assert from_environment(PADDLE) == Meeting(World(3, 4, 1, 2), "10.0.0.1", 40001)


@pytest.mark.parametrize("missing", [NEWER, (*NEWER, "PADDLE_RANK_IN_NODE"), ("PADDLE_CURRENT_ENDPOINT",)])
def test_older_paddle_launchers(missing: tuple[str, ...]) -> None:
    assert from_environment(without(PADDLE, *missing)).world == World(3, 4, 1, 2)


def test_a_scheduler_that_counts_nodes_does_not_hide_paddles_processes() -> None:
    nodes = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}
    assert from_environment({**PADDLE, **nodes}).world.size == 4
    assert from_environment({**PADDLE, **TORCHRUN}).world.size == 8


@pytest.mark.parametrize(
    "variables",
    [
        {}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"},
        {**PADDLE, "PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "1", "PADDLE_TRAINER_ENDPOINTS": "a:1"},
    ],
)  # fmt: skip
def test_one_process(variables: dict[str, str]) -> None:
    assert from_environment(variables) == Meeting(World())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({**TORCHRUN, "RANK": "x"}, "RANK is 'x'"),
        ({**TORCHRUN, "RANK": "8"}, "process 8 of 8"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "process 4 of 4 on this machine"),
        (without(TORCHRUN, "RANK"), "RANK is not set"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not set"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT is not set"),
        ({**PADDLE, "PADDLE_TRAINERS_NUM": "3"}, "4 endpoints"),
        ({**PADDLE, "PADDLE_TRAINER_ID": "4"}, "PADDLE_TRAINER_ID 4"),
    ],
)
def test_contradictions_are_named(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_environment(variables)


def test_each_process_takes_its_own_gpu() -> None:
    world = World(5, 8, 1, 4)
    assert cuda_index(world, 4, {}) == 1
    assert cuda_index(world, 1, {}) == 0
    assert cuda_index(world, 4, {"FLAGS_selected_gpus": "3"}) == 3
    assert cuda_index(world, 2, {"FLAGS_selected_gpus": "3"}) == 1


def test_the_cores_are_shared_unless_the_user_says_otherwise() -> None:
    world = World(0, 4, 0, 4)
    assert threads_of(world, 16, {}) == 4
    assert threads_of(world, 2, {}) == 1
    assert threads_of(world, 16, {"OMP_NUM_THREADS": "1"}) is None
    assert threads_of(world, 16, {"OMP_NUM_THREADS": "3", **TORCHRUN}) is None
    assert threads_of(world, 16, {"OMP_NUM_THREADS": "1", **TORCHRUN}) == 4
