"""Reading a YAML file: safe values only, duplicate keys refused, numbers as YAML 1.2 has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fullquant.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with two differences: a key given twice is an error, and 1e-3 is a number.

    YAML 1.1, which PyYAML follows, reads 1e-3 (no point, or no sign) as a text; YAML 1.2 and every user read a number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise ConfigError(f"line {line}: {key!r} cannot be a key")
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice (first in line {seen[key]}); keep one")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_document(path: str | Path) -> Mapping[str, Any]:
    """The mapping that a YAML file holds. ConfigError names the file: missing, unreadable, not YAML, not a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 ({error.reason}); save it as UTF-8") from None
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}: the file must hold sections such as Global and QuantAware")
    return document
