"""Declared settings: every field of a method says its type, bounds and meaning once.

The declaration is what validates the value, fills ``laconic methods`` and drives the contract
tests, so that a bound is written in one place.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from laconic.errors import ConfigError, nearest


@dataclass(frozen=True)
class Bounds:
    """What a setting allows: an interval (ends included) or a set of choices."""

    help: str
    low: float | None = None
    high: float | None = None


def setting(
    default: Any = MISSING, *, help: str, low: float | None = None, high: float | None = None
) -> Any:
    """Declare a dataclass field with its meaning and bounds (both ends included)."""
    return field(default=default, metadata={"bounds": Bounds(help, low, high)})


def bounds_of(cls: type[Any]) -> dict[str, Bounds]:
    """Return the declared settings of a method class, by field name."""
    return {f.name: f.metadata["bounds"] for f in fields(cls) if "bounds" in f.metadata}


def check_settings(instance: Any, *, owner: str) -> None:
    """Check every declared setting of a dataclass instance.

    Args:
        instance: A dataclass instance.
        owner: What messages call it, for example the method's name.

    Raises:
        ConfigError: A value of the wrong type or outside its bounds; the message has the owner,
            the field, what came and what is allowed.
    """
    hints = get_type_hints(type(instance))
    for name, bounds in bounds_of(type(instance)).items():
        value, where = getattr(instance, name), f"{owner}: {name}"
        _check_type(value, hints[name], where)
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = bounds.low, bounds.high
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise ConfigError(f"{where}={value} must be {_interval(low, high)}.")


def _interval(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _check_type(value: Any, hint: Any, where: str) -> None:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(_fits(value, option) for option in options):
        return
    words = [str(w) for o in options if get_origin(o) is Literal for w in get_args(o)]
    hinted = nearest(value, words) if isinstance(value, str) else ""
    raise ConfigError(f"{where}={value!r} must be {' or '.join(map(_describe, options))}.{hinted}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint) and type(value) in map(type, get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, get_origin(hint) or hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(word) for word in get_args(hint))
    if hint is type(None):
        return "none"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if get_origin(hint) is Mapping:
        return "a mapping of settings"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
