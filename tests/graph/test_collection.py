"""The collector is off inside, and afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from fullquant.graph.collection import without_collection


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_as_it_was(before: bool) -> None:
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ValueError, match="inside"), without_collection():  # noqa: PT012 (the state inside is the point)
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()
