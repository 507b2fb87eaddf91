"""Names of methods and the classes behind them, filled by a decorator in each method's own file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from laconic.errors import ConfigError, nearest

_Class = TypeVar("_Class", bound=type[Any])

# Packages whose modules hold registered methods; each module is imported on the first look-up.
_ROOMS = (
    "laconic.weights.equalize",
    "laconic.weights.prune",
    "laconic.weights.quantize",
    "laconic.weights.factor",
    "laconic.weights.recover",
    "laconic.weights.depth",
)

# What is no step of a recipe: other wings, looked up by their name.
_OTHER_WINGS = {"gradients": ("laconic.gradients",)}


@dataclass(frozen=True)
class Entry:
    """One registered method.

    Attributes:
        name: What recipes call it, for example ``"round-to-nearest"``; unique over all wings.
        family: equalize, prune, quantize, factor, compensate, distill or recover.
        source: Paper (authors, year) that the method comes from.
        cls: The class that holds its settings and its mathematics.
        wing: ``"weights"``: a step of recipes; ``"gradients"``: a communication hook's state.
    """

    name: str
    family: str
    source: str
    cls: type[Any]
    wing: str = "weights"

    @property
    def summary(self) -> str:
        """First line of the class docstring."""
        return (self.cls.__doc__ or "").strip().splitlines()[0]


_ENTRIES: dict[str, Entry] = {}


def method(
    name: str, *, family: str, source: str, wing: str = "weights"
) -> Callable[[_Class], _Class]:
    """Register the decorated class under ``name``; the class gets it as ``method_name``.

    Raises:
        ConfigError: Another class holds the name already.
    """

    def register(cls: _Class) -> _Class:
        held = _ENTRIES.get(name)
        if held and held.cls.__qualname__ != cls.__qualname__:
            raise ConfigError(f"method {name!r} is already registered by {held.cls.__qualname__}.")
        _ENTRIES[name] = Entry(name, family, source, cls, wing)
        cls.method_name = name
        return cls

    return register


def _discover(wing: str) -> None:
    for room in _OTHER_WINGS.get(wing, _ROOMS):
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{room}.{module.name}")


def entries(wing: str = "weights") -> list[Entry]:
    """Return every registered method of a wing, ordered by family and name."""
    _discover(wing)
    held = [entry for entry in _ENTRIES.values() if entry.wing == wing]
    return sorted(held, key=lambda entry: (entry.family, entry.name))


def get(name: str, wing: str = "weights") -> Entry:
    """Return the entry of a method.

    Raises:
        ConfigError: No method of the wing has this name; the message has the nearest one.
    """
    known = {entry.name: entry for entry in entries(wing)}
    if name not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(f"no method {name!r}.{nearest(name, known)} There are: {names}.")
    return known[name]
