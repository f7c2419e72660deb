"""The targets by name. What a table states is defined in `rules`, the tables are in `tables`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fullquant.errors import ConfigError
from fullquant.placement.rules import OperatorRule, Role, Target
from fullquant.placement.tables import TABLES

__all__ = ["TARGETS", "OperatorRule", "Role", "Target", "find_target"]

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in TABLES})


def find_target(name: str) -> Target:
    """The table of a target; ConfigError with the known names where there is none."""
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; known targets: {', '.join(TARGETS)}")
    return TARGETS[name]
