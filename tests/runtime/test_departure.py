"""Bisection finds the first tensor that differs among those that a runtime shows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fullquant.runtime.departure import FAR, Bisection


def _bisection(distances: list[int], visible: list[bool]) -> tuple[Bisection, list[str]]:
    """A runtime that is `distances` steps off at each tensor and shows those that are `visible`, and the output."""
    names = [f"t{k}" for k in range(len(distances))]
    looked_at: list[str] = []
    made = object.__new__(Bisection)
    made.simulation = SimpleNamespace(tensors=names, producer=lambda name: None)  # type: ignore[assignment]
    made.expected = {name: np.zeros(3, np.int64) for name in names}
    made.found = {}

    def see(tensors: list[str]) -> bool:
        looked_at.extend(tensors)
        if len(tensors) > 1:
            return False
        index = names.index(tensors[0])
        shown = visible[index] or index == len(names) - 1
        made.found[tensors[0]] = np.full(3, distances[index]) if shown else None
        return shown

    made._see = see  # type: ignore[method-assign, assignment]
    return made, looked_at


@given(st.integers(2, 40), st.data())
def test_it_is_the_first_visible_one_that_differs(count: int, data: st.DataObject) -> None:
    first, leap, far = sorted(data.draw(st.integers(0, count)) for _ in range(3))
    visible = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    distances = [0 if k < first else 1 if k < leap else 5 if k < far else 50 for k in range(count)]
    made, _ = _bisection(distances, visible)
    found = made.departure()
    shown = [k for k in range(count) if visible[k] or k == count - 1]
    for difference, steps in ((found.first, 0), (found.leap, 1), (found.far, FAR)):
        wanted = next((k for k in shown if distances[k] > steps), None)
        assert (None if difference is None else difference.tensor) == (None if wanted is None else f"t{wanted}")
    assert not found.whole


def test_what_lies_inside_a_kernel_in_front_of_the_difference_is_named() -> None:
    made, looked_at = _bisection([0, 0, 0, 2, 2, 2], [True, True, False, True, True, True])
    found = made.departure()
    assert found.first is not None
    assert (found.first.tensor, found.unseen) == ("t3", ("t2",))
    # The first look asks for all tensors, the others for one each, and for none twice.
    single = looked_at[6:]
    assert len(single) == len(set(single))
