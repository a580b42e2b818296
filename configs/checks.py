"""Checks shared by all config sections: types first, then the few kinds of range."""

import sys
import types
from typing import Any, Literal, Union, get_args, get_origin

from configs.errors import ConfigError, did_you_mean, shown

_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union hint, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: Any) -> str:
    """Return `hint` in words, for error messages."""
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of integers such as [8, 16]"
    if len(alternatives(hint)) > 1:
        return " or ".join(describe(member) for member in alternatives(hint))
    return _NAMES.get(hint) or f"a mapping ({hint.__name__})"


def typed(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type that `hint` asks for, without guessing.

    Only two conversions happen, both lossless: int to float, and list to tuple.

    Raises:
        ConfigError: for everything else, NaN and infinity included.
    """
    for member in alternatives(hint):
        if member is type(None):
            if value is None:
                return None
        elif get_origin(member) is Literal:
            if isinstance(value, str) and value in get_args(member):
                return value
        elif get_origin(member) is tuple:
            if isinstance(value, list | tuple) and all(type(item) is int for item in value):
                return tuple(value)
        elif member is float:
            if type(value) in (int, float) and abs(value) <= sys.float_info.max:
                return float(value)
        elif type(value) is member:
            return value
    raise ConfigError(f"{key} = {shown(value)}: must be {describe(hint)}{_nearest(value, hint)}")


def _nearest(value: Any, hint: Any) -> str:
    choices = [c for m in alternatives(hint) if get_origin(m) is Literal for c in get_args(m)]
    return did_you_mean(value, choices) if isinstance(value, str) else ""


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise ConfigError when `value` is below `low`; None (not set) passes."""
    if value is not None and value < low:
        raise ConfigError(f"{key} = {value!r}: must be at least {low}")


def above_zero(key: str, value: float) -> None:
    """Raise ConfigError when `value` is not above 0."""
    if value <= 0:
        raise ConfigError(f"{key} = {value!r}: must be above 0")


def not_empty(key: str, value: str) -> None:
    """Raise ConfigError when the text `value` is empty or only blanks."""
    if not value.strip():
        raise ConfigError(f"{key} = {value!r}: must not be empty")


MAX_UNUSABLE = 0.5
"""Share of a split's clips that may be unusable before the exit code of a check says so."""


def share(key: str, value: float) -> None:
    """Raise ConfigError when ``value`` is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{key} = {value}: must be between 0 and 1")
