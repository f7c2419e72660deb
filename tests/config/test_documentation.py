"""docs/configuration.md names each key with its default, and no other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from fullquant.config import (
    Augment,
    Calibration,
    Distillation,
    Global,
    OptimizerBuilder,
    QuantAware,
    QuantPost,
    TrainConfig,
)
from fullquant.config.learning_rate import REFUSED_SCHEDULES, SCHEDULES
from fullquant.config.optimizer import OPTIMIZERS, REFUSED_OPTIMIZERS
from fullquant.config.quantization import HARDWARE_TARGETS
from fullquant.config.settings import Settings
from fullquant.placement.target import TARGETS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
SECTIONS: Mapping[str, type[Settings]] = {
    "Global": Global,
    "Global.augment": Augment,
    "Distillation": Distillation,
    "QuantAware": QuantAware,
    "QuantAware.calibration": Calibration,
    "QuantPost": QuantPost,
    "TrainConfig": TrainConfig,
    "TrainConfig.optimizer_builder": OptimizerBuilder,
}


def rows_of(text: str, heading: str, width: int) -> list[list[str]]:
    """The rows of the tables with `width` columns under one heading, header and rule left out."""
    body = re.split(r"^#+ ", text, flags=re.M)
    part = next((part for part in body if part.partition("\n")[0].strip() == heading), "")
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
    return [row for row in rows if len(row) == width and row[0] not in ("key", "type") and set(row[0]) != {"-"}]


def undocumented(text: str, heading: str, cls: type[Settings]) -> set[str]:
    """Keys that are in the table or in the class, but not in both."""
    named = {row[0].strip("`") for row in rows_of(text, heading, 5)}
    return named ^ {*cls.keys(), *cls.FIXED}


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_key_and_no_other(heading: str) -> None:
    assert undocumented(DOCUMENT.read_text(encoding="utf-8"), heading, SECTIONS[heading]) == set()


@pytest.mark.parametrize("heading", SECTIONS)
def test_defaults(heading: str) -> None:
    """Writing the documented default makes the section that leaving it out makes; other values make another."""
    cls = SECTIONS[heading]
    for key, _, default, origin, meaning in rows_of(DOCUMENT.read_text(encoding="utf-8"), heading, 5):
        assert "PaddleSlim" in origin or "ours" in origin, key
        assert meaning, key
        if default != "the table below":
            written = yaml.safe_load(default.strip("`"))
            assert cls.from_mapping({key.strip("`"): written}) == cls(), key


def _default(item: Any) -> object:
    return item.default_factory() if item.default is MISSING else item.default


@pytest.mark.parametrize("known", [SCHEDULES, OPTIMIZERS], ids=["schedules", "optimizers"])
def test_types(known: Mapping[str, type[Settings]]) -> None:
    heading = "TrainConfig.learning_rate" if known is SCHEDULES else "TrainConfig.optimizer_builder"
    rows = {row[0].strip("`"): row[1] for row in rows_of(DOCUMENT.read_text(encoding="utf-8"), heading, 2)}
    assert set(rows) == set(known)
    for name, cls in known.items():
        named = dict(re.findall(r"`(\w+)`(?: = ([^,]+))?", rows[name]))
        for key in ("scale_fn", "scale_mode"):  # kept in the table: only their defaults are accepted
            assert (key in cls.FIXED) == (named.pop(key, None) is not None)
        assert set(named) == set(cls.keys()), name
        for item in fields(cls):  # type: ignore[arg-type]
            if item.default is MISSING and item.default_factory is MISSING:
                assert named[item.name] == "", f"{name}.{item.name} has no default"
            else:
                written = yaml.safe_load(named[item.name])
                default = _default(item)
                expected = float(written) if isinstance(default, float) else written
                assert expected == default, f"{name}.{item.name}"


def test_what_is_refused_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*REFUSED_SCHEDULES, "LBFGS", "Rprop", "fsp", "dkd", "skd", "ChannelPrune", "KL", "avg"):
        assert f"`{name}`" in text, name
    assert {"LBFGS", "Rprop"} <= set(REFUSED_OPTIMIZERS)


def test_targets_are_those_of_the_placement() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*TARGETS, *HARDWARE_TARGETS):
        assert name in text
        assert QuantAware().target_for(name) in TARGETS


def test_checker_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert undocumented(text.replace("| `seed` |", "| `sead` |"), "Global", Global) == {"seed", "sead"}
    assert undocumented(text, "no such heading", Calibration) == set(Calibration.keys())
