"""Every process tells the others that it lives, and notices when another does not.

A collective waits for all processes, and process 0 alone verifies and writes for minutes: neither tells a slow process
from a dead one. So each process has a thread that writes a growing number into a store and reads the others' numbers.
A process that fails writes its reason instead; one that is killed writes nothing any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

from fullquant.distributed.world import World

VARIABLE = "FULLQUANT_HEARTBEAT"
DEFAULT_INTERVAL = 5.0
# Intervals without a sign of life that make a process a dead one, and after a collective has failed already.
_PATIENCE, _SUSPICION = 6, 3
_ENDED, _LEFT = b"!", b"."


class Watch:
    """The thread, and what the main thread asks of it.

    store: a connection of its own to the store, in which every process has its number under beat/<rank> already.
    interval: seconds between two looks. A process is given up after six of them.
    hosts_store: this process keeps the store, and goes last.
    """

    def __init__(self, store: Any, world: World, interval: float, *, hosts_store: bool) -> None:
        self.store, self.world, self.interval, self.hosts_store = store, world, interval, hosts_store
        self.found: str | None = None  # "process 1 ended: ..."
        self._found = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._silent = False
        self._main_waits = False
        self._patience = _PATIENCE
        self._count = 0
        self._seen: dict[int, tuple[bytes, float, int]] = {}  # rank -> (value, since when, looks since then)
        self._thread = threading.Thread(target=self._run, name="fullquant-watch", daemon=True)

    def start(self) -> None:
        """Begins to tell and to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch without a word: the run has ended well, which a barrier has made sure of."""
        self._stop.set()
        self._thread.join(timeout=10 * self.interval)

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._tell()
                found = self._look()
            except Exception as error:  # whatever the store raises: without it nobody can be heard
                found = self._store_is_gone(error)
            if found is not None and not self._stop.is_set():
                self._end(found)
                return
            if self._stop.wait(self.interval):
                return

    def _tell(self) -> None:
        with self._lock:
            if not self._silent:
                self._count += 1
                self.store.set(_key(self.world.rank), str(self._count))

    def _look(self) -> str | None:
        """The sentence about a process that has ended, if there is one."""
        verdict, *beats = self.store.multi_get(["verdict", *map(_key, range(self.world.size))])
        if verdict:
            return str(verdict.decode())
        now = time.monotonic()
        for rank, beat in enumerate(beats):
            value, since, looks = self._seen.get(rank, (b"", now, 0))
            self._seen[rank] = (beat, now, 0) if beat != value else (value, since, looks + 1)
            if rank == self.world.rank or beat == _LEFT:
                continue
            _, since, looks = self._seen[rank]
            # Two looks: the same mistake in this process is about to end it with its own words.
            limit = 2 if beat.startswith(_ENDED) else self._patience
            if looks >= limit and now - since >= limit * self.interval:
                return self._verdict(rank, beat, now - since)
        return None

    def _verdict(self, rank: int, beat: bytes, seconds: float) -> str:
        reason = (
            beat[1:].decode()
            if beat.startswith(_ENDED)
            else f"no sign of life for {seconds:.0f} s; was it killed, for want of memory perhaps?"
        )
        first: bytes = self.store.compare_set("verdict", "", f"process {rank} ended: {reason}")
        return first.decode()

    def _store_is_gone(self, error: Exception) -> str:
        told = [(rank, beat) for rank, (beat, _, _) in self._seen.items() if beat.startswith(_ENDED)]
        if told:
            return f"process {told[0][0]} ended: {told[0][1][1:].decode()}"
        return f"process 0 ended, or its launcher: the connection to it is lost ({first_line(error)})"

    def _end(self, found: str) -> None:
        """Ends this process, unless the main thread is waiting for the reason and ends it by itself."""
        with self._lock:
            self.found = found
            self._found.set()
            mine = self._silent or self._main_waits
            self._silent = True
        if mine:
            return
        with contextlib.suppress(Exception):
            self.store.set(_key(self.world.rank), _LEFT)
        if self.speaks():
            print(f"error: {found}", file=sys.stderr, flush=True)
        self.linger()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(1)

    # ---- the main thread ---------------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Tells the others why this process ends, instead of that it lives."""
        with self._lock:
            self._silent = True
            with contextlib.suppress(Exception):
                self.store.set(_key(self.world.rank), _ENDED + reason.encode())

    def fails_alike(self, reason: str) -> bool:
        """Whether process 0 fails for the same reason; in process 0: whether all do. Waits for one and a half looks."""
        wanted = [rank for rank in range(self.world.size) if rank != self.world.rank] if self.world.first else [0]
        end = time.monotonic() + 1.5 * self.interval
        alike = False
        while not alike and time.monotonic() < end:
            try:
                beats = self.store.multi_get([_key(rank) for rank in wanted])
            except Exception:  # process 0 is gone: it has not said the same, or has said it already
                return False
            alike = all(beat == _ENDED + reason.encode() for beat in beats)
            if not alike and all(beat.startswith(_ENDED) for beat in beats):
                return False
            time.sleep(min(0.05, self.interval / 10))
        return alike

    def blame(self) -> str | None:
        """Who has ended, after a collective has failed: waits until the thread knows. None: nobody, as it seems."""
        with self._lock:
            self._main_waits = True
            self._patience = _SUSPICION
        self._found.wait((_PATIENCE + 3) * self.interval)
        with self._lock:
            self._silent = True
            with contextlib.suppress(Exception):
                self.store.set(_key(self.world.rank), _LEFT)
        return self.found

    def speaks(self) -> bool:
        """Whether this process is the first of those that are left, which prints what has happened."""
        return all(
            rank >= self.world.rank or (self.found or "").startswith(f"process {rank} ended") for rank in self._seen
        )

    def linger(self) -> None:
        """Keeps the store until the others have heard."""
        if self.hosts_store:
            time.sleep(1.5 * self.interval)

    def told(self) -> None:
        """Process 0 has printed its error."""
        with contextlib.suppress(Exception):
            self.store.set("told", "1")

    def wait_until_told(self) -> None:
        """Waits until process 0 has printed the error that this process has as well."""
        end = time.monotonic() + 2 * self.interval
        with contextlib.suppress(Exception):
            while time.monotonic() < end and not self.store.check(["told"]):
                time.sleep(min(0.05, self.interval / 10))


def _key(rank: int) -> str:
    return f"beat/{rank}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its class where it has none. PyTorch appends stack traces."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
