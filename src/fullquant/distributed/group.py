"""Meeting and parting: the process group of PyTorch, its collectives, and what happens when one process fails."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fullquant.distributed.environment import Meeting, cuda_index, from_environment, threads_of
from fullquant.distributed.watch import DEFAULT_INTERVAL, VARIABLE, Watch, first_line
from fullquant.distributed.world import World
from fullquant.errors import ConfigError, FullquantError

log = logging.getLogger("fullquant")

# How long the first process waits for the last one to start.
_MEETING = timedelta(seconds=300)
# Collectives wait for as long as process 0 may verify and write; that all live is the watch's business.
_NEVER = timedelta(days=7)
_PARTING = timedelta(seconds=60)


class ProcessEnded(FullquantError):
    """Another process of the run has ended; the message says which and why."""


@dataclass
class _Group:
    world: World
    watch: Watch
    store: Any
    device: str | None = None
    threads: int = 1


_current: _Group | None = None
_meetings = itertools.count()


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[tuple[World, str | None]]:
    """The world that a launcher has made, joined for the time of the block, and this process's device.

    Without a launcher, or with one process, nothing happens. A block within a block is in the same world.
    device: "cpu", "gpu" or "cuda", None for the GPU where there is one; with several processes each gets its own GPU.

    A failing process tells the others its reason. Where all fail for the same reason, process 0 raises its error and
    the others end silently with status 1; an error of one process alone names it. ProcessEnded: another has ended.
    """
    if _current is not None:
        yield _current.world, _current.device
        return
    meeting = from_environment()
    world = meeting.world
    if world.alone:
        yield world, device
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of lost connections are stack traces
    group = _meet(meeting)
    try:
        group.device = _device(device, world)
        _initialise(group)
        with _quiet(world):
            yield world, group.device
            world.barrier()
    except BaseException as error:
        _fail(group, error)
    _part(group)


def _device(asked: str | None, world: World) -> str | None:
    if world.alone or asked == "cpu":
        return asked
    import torch

    if not torch.cuda.is_available():
        return asked if asked is not None else "cpu"
    if asked is not None and asked.startswith("cuda:") and world.local_size > 1:
        raise ConfigError(
            f"device {asked!r} is one GPU for {world.local_size} processes; give gpu: each process then takes its own"
        )
    if asked is not None and asked.startswith("cuda:"):
        return asked
    return f"cuda:{cuda_index(world, torch.cuda.device_count())}"


def _meet(meeting: Meeting) -> _Group:
    """All processes at one store, watching each other from here on."""
    global _current
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if dist.is_initialized():
        raise ConfigError("torch.distributed is initialised already; fullquant joins the processes by itself")
    world = meeting.world
    hosts = world.first and not meeting.hosted
    prefix = f"fullquant/{meeting.attempt}/{next(_meetings)}"
    try:
        store = PrefixStore(prefix, _connect(meeting, hosts))
        _gather_all(store, world)
        watch = Watch(PrefixStore(prefix, _connect(meeting, False)), world, _interval(), hosts_store=hosts)
    except (dist.DistError, RuntimeError) as error:
        raise ProcessEnded(
            f"process {world.rank} of {world.size} could not meet the others at {meeting.host}:{meeting.port} "
            f"({first_line(error)}); do all run, and can they reach this address?"
        ) from error
    watch.start()
    _current = _Group(world, watch, store)
    return _current


def _initialise(group: _Group) -> None:
    """The process group of PyTorch, and this process's share of the cores."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    world = group.world
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group.threads = threads_of(world, cores) or torch.get_num_threads()
    torch.set_num_threads(group.threads)
    if group.device is not None and group.device.startswith("cuda"):
        torch.cuda.set_device(group.device)
    dist.init_process_group(
        _backend(group.device, world), store=PrefixStore("group", group.store), rank=world.rank, world_size=world.size,
        timeout=_NEVER,
    )  # fmt: skip


def _connect(meeting: Meeting, hosts: bool) -> Any:
    import torch.distributed as dist

    return dist.TCPStore(  # type: ignore[attr-defined]
        meeting.host, meeting.port, None, hosts, timeout=_MEETING, wait_for_workers=False
    )


def _gather_all(store: Any, world: World) -> None:
    """Waits until every process has its first number in the store."""
    if world.first:
        store.set("verdict", "")
    store.set(f"beat/{world.rank}", "0")
    store.wait(["verdict", *(f"beat/{rank}" for rank in range(world.size))], _MEETING)


def _interval() -> float:
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_INTERVAL
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 60.0:
        raise ConfigError(f"{VARIABLE} is {text!r}; give the seconds between two signs of life, above 0, at most 60")
    return seconds


def _backend(device: str | None, world: World) -> str:
    """gloo for NumPy arrays and CPU tensors; NCCL for those on GPUs, where each process has one of its own."""
    import torch
    import torch.distributed as dist

    if device is None or not device.startswith("cuda"):
        return "gloo"
    own = dist.is_nccl_available() and world.local_size <= torch.cuda.device_count()
    return f"cpu:gloo,cuda:{'nccl' if own else 'gloo'}"


@contextlib.contextmanager
def _quiet(world: World) -> Iterator[None]:
    """Process 0 alone logs. Files that the others cannot read are still named: process 0 does not see them."""
    if world.first:
        yield
        return
    loader = logging.getLogger("fullquant.data.loader")
    before = log.level, loader.level
    log.setLevel(logging.ERROR)
    loader.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before[0])
        loader.setLevel(before[1])


# ---- the end -------------------------------------------------------------------------------------------------------


def _part(group: _Group) -> None:
    """Behind a barrier: nobody needs anybody any more, except that the store has to be there until all have gone."""
    global _current
    import torch.distributed as dist

    world, store = group.world, group.store
    group.watch.stop()
    dist.destroy_process_group()
    with contextlib.suppress(Exception):  # one that is killed after its work is done changes nothing
        store.set(f"parted/{world.rank}", "1")
        if world.first:
            store.wait([f"parted/{rank}" for rank in range(world.size)], _PARTING)
    _current = None


def _fail(group: _Group, error: BaseException) -> NoReturn:
    """Raises what this process has to say: its error, ProcessEnded for another's, or SystemExit where it is said."""
    global _current
    _current = None
    watch, world = group.watch, group.world
    if isinstance(error, ProcessEnded) or _is_connection(error):
        found = str(error) if isinstance(error, ProcessEnded) else watch.blame()
        if found is not None:
            watch.linger()
            if watch.speaks():
                raise ProcessEnded(found) from error
            raise SystemExit(1) from error
    reason = first_line(error) if isinstance(error, FullquantError) else f"{type(error).__name__}: {first_line(error)}"
    watch.fail(reason)
    if not isinstance(error, Exception):  # interrupted: all are, or the launcher ends the others
        raise error
    alike = watch.fails_alike(reason)
    if world.first:
        atexit.register(watch.told)
    elif alike:
        watch.wait_until_told()
        raise SystemExit(1) from error
    if isinstance(error, FullquantError) and not alike:
        raise type(error)(f"process {world.rank}: {error}") from error
    raise error


def _is_connection(error: BaseException) -> bool:
    """Whether a collective has failed because another process is not there: of itself it says nothing better."""
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in text for word in ("gloo", "NCCL", "Connection ", "ProcessGroup"))
    )


def keep_threads() -> None:
    """See World.keep_threads."""
    import torch

    if _current is not None:
        torch.set_num_threads(_current.threads)


# ---- collectives -----------------------------------------------------------------------------------------------------


def reduced(array: npt.NDArray[Any], how: str) -> npt.NDArray[Any]:
    """`how` ("sum", "min", "max") over all processes; same shape and type."""
    import torch
    import torch.distributed as dist

    operation = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how]
    tensor = torch.from_numpy(np.array(array))
    dist.all_reduce(tensor, operation)
    result: npt.NDArray[Any] = tensor.numpy()
    return result


def gathered(item: Any, size: int) -> list[Any]:
    """The items of all processes, in their order."""
    import torch.distributed as dist

    found: list[Any] = [None] * size
    dist.all_gather_object(found, item)
    return found


def shared(item: Any) -> Any:
    """Process 0's item. Sent as bytes on the CPU: objects that hold GPU tensors must be moved before."""
    import torch
    import torch.distributed as dist

    first = dist.get_rank() == 0
    body = np.frombuffer(pickle.dumps(item, protocol=5) if first else b"", np.uint8)
    length = torch.tensor([len(body)])
    dist.broadcast(length, 0)
    content = torch.from_numpy(body.copy()) if first else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return item if first else pickle.loads(content.numpy().tobytes())


def share_state(tensors: Mapping[str, Any]) -> None:
    """Process 0's values into the tensors of all processes, in place."""
    import torch
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in tensors.values():
            own = tensor.detach().cpu().contiguous()
            dist.broadcast(own, 0)
            tensor.copy_(own)
