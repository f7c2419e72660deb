from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullquant.data.feeds import as_feeds, to_numpy
from fullquant.data.images import Preprocess
from fullquant.data.lists import find_images
from fullquant.data.loader import ImageLoader
from fullquant.errors import DataError

_IMAGES = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
_LABELS = np.array([1, 0, 3, 2])


class PaddleLike:
    """What a Paddle tensor offers: .numpy(), and nothing of torch's."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._value = value

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._value


@pytest.mark.parametrize(
    "item",
    [
        {"x": _IMAGES},
        {"x": torch.from_numpy(_IMAGES)},
        {"x": torch.from_numpy(_IMAGES.copy()).requires_grad_()},
        {"x": PaddleLike(_IMAGES)},
        {"x": _IMAGES, "label": _LABELS},
        [{"x": PaddleLike(_IMAGES)}],
        (_IMAGES, _LABELS),
        [torch.from_numpy(_IMAGES), torch.from_numpy(_LABELS)],
        (_IMAGES, _LABELS[:, None]),
        (_IMAGES,),
        _IMAGES,
        _IMAGES.astype(np.float64),
        torch.from_numpy(_IMAGES),
    ],
    ids=str,
)
def test_every_form_becomes_the_same_feed(item: Any) -> None:
    feeds = as_feeds([item, item], "x", (3, 8, 8))
    result = list(feeds)
    assert len(result) == len(feeds) == 2
    assert set(result[0]) == {"x"}
    assert result[0]["x"].dtype == np.float32
    np.testing.assert_array_equal(result[1]["x"], _IMAGES)
    images, labels = next(feeds.batches())
    np.testing.assert_array_equal(images, _IMAGES)
    assert labels.tolist() in (_LABELS.tolist(), [-1] * 4)


def test_labels_are_found() -> None:
    for item in ((_IMAGES, _LABELS[:, None]), {"x": _IMAGES, "label": torch.from_numpy(_LABELS)}):
        _, labels = next(as_feeds([item], "x").batches())
        assert labels.tolist() == _LABELS.tolist()


def test_function_of_a_generator_can_be_read_again() -> None:
    def reader() -> Iterator[dict[str, Any]]:
        yield {"x": _IMAGES}

    feeds = as_feeds(reader, "x")
    assert len(list(feeds)) == len(list(feeds)) == 1
    with pytest.raises(TypeError):
        len(feeds)


def test_exhausted_generator_is_explained() -> None:
    feeds = as_feeds(({"x": _IMAGES} for _ in range(1)), "x")
    list(feeds)
    with pytest.raises(DataError, match="function that returns a new one"):
        list(feeds)


def test_image_loader_is_a_source(image_set: Path) -> None:
    loader = ImageLoader(find_images(image_set, "val"), Preprocess(24, 32), 8)
    assert sum(len(feed["x"]) for feed in as_feeds(loader, "x", (3, 24, 24))) == 37


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"inputs": _IMAGES}, r"batch 1 .* has 'inputs': expected the model's input 'x'"),
        ({}, "has nothing"),
        ({"x": _IMAGES.astype(np.uint8)}, "'x' is uint8, expected float32"),
        ({"x": _IMAGES[:, :1]}, r"shape \[4, 1, 8, 8\], expected \['any', 3, 8, 8\]"),
        ({"x": _IMAGES[0]}, r"shape \[3, 8, 8\], expected"),
        ({"x": np.float32(3)}, r"shape \[\], expected"),
        ({"x": _IMAGES[:0]}, r"shape \[0, 3, 8, 8\]"),
        ((_IMAGES, _LABELS, _LABELS), "tuple of 3"),
        ((_IMAGES, _LABELS[:2]), r"labels are int64 of shape \[2\], expected 4"),
        ((_IMAGES, _LABELS.astype(np.float32)), "labels are float32"),
    ],
)
def test_mismatch_is_named(item: Any, message: str) -> None:
    feeds = as_feeds([_IMAGES, item], "x", (3, 8, 8))
    with pytest.raises(DataError, match=message) as caught:
        list(feeds)
    assert "\n" not in str(caught.value)


def test_something_that_is_no_loader() -> None:
    with pytest.raises(DataError, match="is a int"):
        list(as_feeds(3, "x"))  # type: ignore[arg-type]


def test_bfloat16_tensor() -> None:
    np.testing.assert_array_equal(to_numpy(torch.ones(3, dtype=torch.bfloat16)), np.ones(3, np.float32))
