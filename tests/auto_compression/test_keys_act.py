"""Keys of ours that reach their place through the stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.auto_compression.api import AutoCompression
from fullquant.auto_compression.loaders import augment_of
from fullquant.auto_compression.stages import TrainingPlan, _teacher_cache
from fullquant.config import Global, load_config
from fullquant.distributed import World
from tests.graphs import small_classifier


@pytest.mark.parametrize("versions", [None, 3])
def test_versions_reach_the_augmentation(versions: int | None) -> None:
    augment = augment_of(Global.from_mapping({"augment": {"versions": versions}}))
    assert augment is not None
    assert augment.versions == versions


@pytest.mark.parametrize(("gigabytes", "share"), [(None, None), (3.0, 1.5e9)])
def test_the_teacher_cache_lies_in_save_dir_and_is_shared_out(
    tmp_path: Path, gigabytes: float | None, share: float | None
) -> None:
    config = load_config({"QuantAware": {}, "Distillation": {"teacher_cache_gb": gigabytes}})
    plan = TrainingPlan(1, None, 1.0, tmp_path / ".checkpoint.pt", "", world=World(1, 2, 1, 2))
    cache = _teacher_cache(config, plan)
    assert (None if cache is None else cache.limit) == share
    assert cache is None or cache.folder.parent == tmp_path


def test_a_checkpoint_is_resumed_whatever_the_verification(tmp_path: Path) -> None:
    ir.save(small_classifier(), tmp_path / "model.onnx")

    def digest(**keys: int) -> str:
        config = load_config({"Global": keys, "QuantAware": {}})
        images = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]
        return AutoCompression(tmp_path / "model.onnx", images, save_dir=tmp_path / "out", config=config)._digest()

    assert digest(verify_images=0) == digest()
    assert digest(seed=1) != digest()
