"""Calibration and training in two processes, beside the same in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.distributed import toys
from tests.distributed.launching import run

Arrays = dict[str, npt.NDArray[Any]]
RESULTS = ("losses", "validated", "best", "error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes have written."""
    folder = tmp_path_factory.mktemp("stages")
    both = run(["-m", "tests.distributed.programs", "stages", folder])
    assert [ended.status for ended in both] == [0, 0], both[0].stderr + both[1].stderr
    return folder


def _read(folder: Path, how: str) -> tuple[Arrays, Arrays]:
    """What process 0 and process 1 have of it."""
    first, second = (dict(np.load(folder / f"{how}.{rank}.npz")) for rank in (0, 1))
    return first, second


def _distance(one: Arrays, other: Arrays) -> float:
    """The largest difference in a loss, a weight or the logarithm of a scale."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[k] - other[k]).max()) for k in one if one[k].dtype.kind == "f")


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def alone() -> Arrays:
    """One process."""
    return toys.trained("plain")


def test_the_observers_of_two_processes_say_exactly_what_those_of_one_say(folder: Path) -> None:
    expected = toys.observed()
    for found in _read(folder, "observed"):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(folder: Path, alone: Arrays) -> None:
    first, second = _read(folder, "plain")
    assert _same(first, second)
    assert len(first["losses"]) == toys.STEPS
    assert _distance(first, alone) < 1e-5
    assert first["best"] == toys.STEPS  # by process 0's scores, which rise; those of process 1 fall


def test_the_comparison_can_fail(folder: Path, alone: Arrays) -> None:
    first, second = _read(folder, "undealt")
    assert _same(first, second)
    assert _distance(first, alone) > 1e-4


def test_an_epoch_ends_where_the_first_process_has_no_batch(folder: Path) -> None:
    first, second = _read(folder, "uneven")
    assert _same(first, second)
    assert len(first["losses"]) == toys.STEPS


def test_a_loss_that_is_not_finite_in_one_process_stops_both(folder: Path) -> None:
    first, second = _read(folder, "nan")
    assert _same(first, second)
    assert "the loss became nan at step 5" in str(first["error"])
    assert len(first["losses"]) == 4
    assert np.isfinite(first["weights.t_w1"]).all()


def test_a_run_that_was_broken_off_goes_on(folder: Path) -> None:
    assert str(_read(folder, "broken")[0]["error"]) == "broken off"
    first, second = _read(folder, "resumed")
    straight, _ = _read(folder, "plain")
    assert _same(first, second)
    assert _same(
        {k: v for k, v in first.items() if k not in RESULTS}, {k: v for k, v in straight.items() if k not in RESULTS}
    )
    assert not (folder / "checkpoint.pt").exists()
