"""Finds the studies: one module of ``laconic.studies`` a paper."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from laconic.errors import ConfigError, nearest


@dataclass(frozen=True)
class Study:
    """One study as its module declares it.

    Attributes:
        name: Name of the module, with hyphens.
        claim: First line of the module's text, or its ``CLAIM``.
        source: The paper, ``SOURCE`` of the module.
        run: ``(scale=, seed=, device=, progress=) -> dict`` with ``passed`` and ``rows``.
    """

    name: str
    claim: str
    source: str
    run: Callable[..., dict[str, Any]]


def find_studies() -> dict[str, Study]:
    """Return every study by its name: modules with a ``run`` function."""
    package = importlib.import_module("laconic.studies")
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name.startswith("_"):
            continue
        module = importlib.import_module(f"laconic.studies.{entry.name}")
        if callable(getattr(module, "run", None)):
            name = entry.name.replace("_", "-")
            first = (module.__doc__ or "").strip().splitlines()[:1]
            claim = str(getattr(module, "CLAIM", first[0] if first else ""))
            found[name] = Study(name, claim, str(getattr(module, "SOURCE", "")), module.run)
    return found


def get_study(name: str) -> Study:
    """Return a study.

    Raises:
        ConfigError: None has this name; has the nearest one.
    """
    found = find_studies()
    if name not in found:
        known = ", ".join(found) or "none yet"
        raise ConfigError(f"no study {name!r}.{nearest(name, found)} There are: {known}.")
    return found[name]
