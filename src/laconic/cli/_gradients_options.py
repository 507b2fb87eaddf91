"""What the commands on gradients share: a method and its settings, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

from laconic.cli._options import pairs
from laconic.errors import ConfigError, nearest

_Function = TypeVar("_Function", bound=Callable[..., Any])


def settings_option(function: _Function) -> _Function:
    """Add ``--set``."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        callback=pairs,
        help="A setting of the method, such as density=0.01; may be given again.",
    )(function)


def adaptive_option(function: _Function) -> _Function:
    """Add ``--adaptive``."""
    return click.option(
        "--adaptive",
        is_flag=True,
        help="Let L-GreCo choose the method's setting for each tensor; needs --data.",
    )(function)


def check_method(method: str, settings: Mapping[str, Any]) -> None:
    """Refuse an unknown method or a setting that it does not have, before any work.

    Raises:
        ConfigError: Has the nearest name and what there is.
    """
    from laconic import registry
    from laconic.settings import bounds_of

    cls = registry.get(method, wing="gradients").cls
    if "inner" in cls.__dataclass_fields__:
        raise ConfigError(
            f"--method {method} chooses settings for another method. Name that one, such as "
            "powersgd, and add --adaptive."
        )
    known = [name for name in bounds_of(cls) if name in {f.name for f in fields(cls)}]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"--set {key}: {method} has no such setting.{nearest(key, known)} "
                f"It has: {', '.join(known)}."
            )
