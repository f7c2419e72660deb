"""The order of an image's axes: NCHW inside, NHWC in files of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

#: Metadata of a model whose file takes images as [N, H, W, C]; the graph takes them as [N, C, H, W].
INPUT_LAYOUT = "fullquant.input_layout"
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

_CHANNELS = (1, 3, 4)
_T = TypeVar("_T")


def is_channels_last(sizes: Sequence[object] | None) -> bool:
    """Whether an input of these sizes holds images as [N, H, W, C]: 1, 3 or 4 channels at the end and not in front."""
    return sizes is not None and len(sizes) == 4 and sizes[3] in _CHANNELS and sizes[1] not in _CHANNELS


def is_in_other_order(given: Sequence[object], declared: Sequence[object]) -> bool:
    """Whether sizes are [N, C, H, W] where the input is declared [N, H, W, C]."""
    return is_channels_last(declared) and len(given) == 4 and given[1] == declared[3] != given[3]


def as_declared(given: Sequence[_T], declared: Sequence[object]) -> Sequence[_T]:
    """Sizes [N, C, H, W] in the order of an input that is declared [N, H, W, C]; anything else as it is given."""
    return [given[axis] for axis in TO_LAST] if is_in_other_order(given, declared) else given
