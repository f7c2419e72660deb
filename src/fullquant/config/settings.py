"""From plain YAML values to frozen dataclasses that check themselves.

Every section of a configuration is a frozen dataclass derived from `Settings`. Its field types say what a key holds;
`Settings.__post_init__` converts and checks each field: a section built in Python is checked like one from YAML.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, Union

from fullquant.errors import ConfigError

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Fixed:
    """A PaddleSlim key that has no choice here: the accepted values mean what fullquant does anyway.

    values: what may be written. reason: why nothing else may, and what to do instead.
    """

    values: tuple[object, ...]
    reason: str


class Settings:
    """Base of the sections.

    SECTION: the name that messages use ("QuantAware"). FIXED: keys that are accepted with certain values only and have
    no field. ALIASES: other spellings of field names. A field's metadata may hold "before": a function that turns the
    written value into one that the field's type accepts.
    """

    SECTION: ClassVar[str]
    FIXED: ClassVar[Mapping[str, Fixed]] = {}
    ALIASES: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            where = f"{self.SECTION}.{item.name}"
            before: Callable[[object, str], object] | None = item.metadata.get("before")
            if before is not None:
                value = before(value, where)
            object.__setattr__(self, item.name, convert(value, hints[item.name], where))
        self.check()

    def check(self) -> None:
        """Checks that go beyond the types of the single fields. ConfigError names section, key and remedy."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys that have a field, in order."""
        return tuple(item.name for item in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def from_mapping(cls: type[S], values: object) -> S:
        """The section from plain values (of YAML); None stands for an empty section.

        Raises ConfigError for an unknown key (with the nearest known one), a wrong type, a value out of range.
        """
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.SECTION}: {values!r} is not a mapping of keys to values")
        known = cls.keys()
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            name = cls.ALIASES.get(key, key)
            if name in cls.FIXED:
                _check_fixed(cls.FIXED[name], value, f"{cls.SECTION}.{key}")
            elif name not in known:
                raise ConfigError(
                    f"{cls.SECTION}: unknown key {key!r}{nearest(key, [*known, *cls.FIXED, *cls.ALIASES])}"
                )
            elif name in arguments:
                raise ConfigError(f"{cls.SECTION}: {key!r} and another spelling of {name!r} are both given; keep one")
            else:
                arguments[name] = value
        missing = [item.name for item in fields(cls) if _is_required(item) and item.name not in arguments]  # type: ignore[arg-type]
        if missing:
            raise ConfigError(f"{cls.SECTION}: {', '.join(missing)} must be given")
        return cls(**arguments)


def _is_required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _check_fixed(fixed: Fixed, value: object, where: str) -> None:
    value = None if value == "None" else value
    if any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in fixed.values):
        return
    allowed_text = " or ".join(_shown(allowed) for allowed in fixed.values)
    raise ConfigError(f"{where}: {_shown(value)} is not available (only {allowed_text}): {fixed.reason}")


def _shown(value: object) -> str:
    """A value as one writes it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them where none is near."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {by_lower[found[0]]!r}?"
    return f"; known: {', '.join(by_lower.values()) or 'none'}"


_TYPES: dict[type, dict[str, Any]] = {}


def field_types(cls: type[Settings]) -> dict[str, Any]:
    """The resolved types of a section's fields, by name."""
    if cls not in _TYPES:
        _TYPES[cls] = typing.get_type_hints(cls)
    return _TYPES[cls]


def convert(value: object, hint: Any, where: str) -> object:
    """`value` as the type `hint`: bool, int, float, str, Literal, X | Y, tuples, or a Settings class.

    An integer is a number, so it passes for float; true and false are neither integers nor numbers; a lone item passes
    for `tuple[X, ...]`; the text "None", which PaddleSlim's tutorial writes for null, passes for None.
    Raises ConfigError(f"{where}: ... expected ...").
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, typing.get_args(hint), where)
    if origin is Literal:
        return _convert_literal(value, typing.get_args(hint), where)
    if origin is tuple:
        return _convert_tuple(value, typing.get_args(hint), where)
    if isinstance(hint, type) and issubclass(hint, Settings):
        return value if isinstance(value, hint) else hint.from_mapping(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value!r} is not a finite number")
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    raise ConfigError(f"{where}: {_shown(value)} is not {describe(hint)}")


def _convert_union(value: object, options: tuple[Any, ...], where: str) -> object:
    if type(None) in options and (value is None or value == "None"):
        return None
    wanted = [option for option in options if option is not type(None)]
    for option in wanted:
        if isinstance(option, type) and issubclass(option, Settings) and isinstance(value, option):
            return value
    if len(wanted) == 1:
        return convert(value, wanted[0], where)
    for option in wanted:
        try:
            return convert(value, option, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}: {_shown(value)} is not {' or '.join(describe(option) for option in wanted)}")


def _convert_literal(value: object, choices: tuple[Any, ...], where: str) -> object:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise ConfigError(f"{where}: {_shown(value)} is not one of {', '.join(map(str, choices))}")


def _convert_tuple(value: object, items: tuple[Any, ...], where: str) -> tuple[object, ...]:
    if len(items) == 2 and items[1] is Ellipsis:
        listed = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(item, items[0], where) for item in listed)
    if not isinstance(value, (list, tuple)) or len(value) != len(items):
        raise ConfigError(f"{where}: {_shown(value)} is not {describe(tuple[items])}")  # type: ignore[valid-type]
    return tuple(convert(item, hint, where) for item, hint in zip(value, items, strict=True))


_DESCRIPTIONS: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "null",
}


def describe(hint: Any) -> str:
    """A type in words, for messages and for the generated part of the documentation."""
    if hint in _DESCRIPTIONS:
        return _DESCRIPTIONS[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    return f"a {hint.__name__} mapping"


def require(condition: bool, message: str) -> None:
    """ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)
