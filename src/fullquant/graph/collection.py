"""Python's garbage collector, out of the way while graphs are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """No collection of cycles inside. Also a decorator: `@without_collection()`.

    A graph is some ten small objects for each node and value. Thousands are made and kept, and the collector walks
    all of them over and over for the few that are garbage: 40% of the time of the passes of a CSWin transformer.
    What is dropped meanwhile is collected afterwards; the numbers of a weight are not part of a cycle.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
