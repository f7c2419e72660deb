"""Outputs beyond the limit are on disk, and come back as they were."""

from __future__ import annotations

import numpy as np
import pytest

from fullquant.evaluation.outputs import Outputs


@pytest.mark.parametrize("limit", [0, 100, 1 << 20])
def test_what_goes_in_comes_out(limit: int) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(0, 1, (size, 3)).astype(np.float32) for size in (4, 4, 1, 7)]
    outputs = Outputs(limit)
    for batch in batches:
        outputs.append(batch)
    assert len(outputs) == 4
    for _ in range(2):
        for got, want in zip(outputs, batches, strict=True):
            np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(outputs[-1], batches[3])
    np.testing.assert_array_equal(np.concatenate(outputs[1:3]), np.concatenate(batches[1:3]))
    assert sum(batch.nbytes for batch in outputs._kept) <= limit
    assert (outputs._file is None) == (limit > 1000)
    with pytest.raises(IndexError):
        outputs[4]
