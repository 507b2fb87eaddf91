"""The catalogue of data sets: load one by name, list them, describe one."""

from __future__ import annotations

import inspect
from typing import Any

from laconic.datasets import _cifar, _digits, _grey, _language, _photos, _stdlib
from laconic.datasets._description import LOADERS, Description
from laconic.errors import ConfigError, nearest
from laconic.task import Task

# The modules enter their loaders when they are imported.
_ROOMS = (_digits, _stdlib, _grey, _cifar, _photos, _language)


def names() -> list[str]:
    """Return the names of all data sets, in alphabetical order.

    Example:
        >>> from laconic import datasets
        >>> "digits" in datasets.names()
        True
    """
    return sorted(LOADERS)


def describe(name: str) -> Description:
    """Return what a data set holds, its licence, source, files and loader.

    Raises:
        ConfigError: No data set has this name; the message has the nearest one.
    """
    if name not in LOADERS:
        known = ", ".join(names())
        raise ConfigError(f"no data set {name!r}.{nearest(name, LOADERS)} There are: {known}.")
    return LOADERS[name]


def load(name: str, *, seed: int = 0, **options: Any) -> Task:
    """Load a data set as a task with training, calibration and test examples.

    Args:
        name: One of :func:`names`.
        seed: Draws the calibration examples from the training ones; the split between
            training and test never depends on it.
        options: Options of the data set; ``describe(name).loader`` documents them.

    Returns:
        The task, named after the data set.

    Raises:
        ConfigError: Unknown name or option, or an option out of its bounds.
        DataError: A file is missing or its checksum is wrong; says what to do.
        MissingExtraError: The data set needs an optional package.

    Example:
        >>> from laconic import datasets
        >>> task = datasets.load("digits")
        >>> len(task.train), len(task.test)
        (1000, 797)
    """
    loader = describe(name).loader
    allowed = [key for key in inspect.signature(loader).parameters if key != "seed"]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"data set {name!r}: no option {option!r}.{nearest(option, allowed)}"
                f" There are: {', '.join(allowed) or 'none'}."
            )
    return loader(seed=seed, **options)
