"""Results on stdout, notes on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 160  # columns where stdout is no terminal: nothing is folded at 80


def show(*renderables: RenderableType) -> None:
    """Print tables to stdout; colours only on a terminal and not under ``NO_COLOR``."""
    import os

    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(width=_PIPE_WIDTH if piped else None, highlight=False)
    for item in renderables:
        console.print(item)


def show_json(value: Any) -> None:
    """Print a value as JSON to stdout; numbers that are not finite become texts."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def note(text: str) -> None:
    """Print a line to stderr."""
    click.echo(text, err=True)


def plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
