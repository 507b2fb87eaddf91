"""``laconic methods``."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import show, show_json

if TYPE_CHECKING:
    from laconic.registry import Entry

EXAMPLES = (
    "laconic methods",
    "laconic methods round-to-nearest",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the methods that recipes are made of, or the settings of the one of this NAME."""
    from laconic import registry

    if name is not None:
        _show_one(registry.get(name), as_json=as_json)
        return
    entries = registry.entries()
    if as_json:
        show_json([_row(entry) for entry in entries])
        return
    from laconic.report.terminal import plain_table

    rows = [[e.name, e.family, e.summary.replace("``", ""), e.source] for e in entries]
    show(plain_table("Methods", ["name", "family", "what it does", "source"], rows, text_columns=4))


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "summary": entry.summary,
        "source": entry.source,
        "settings": _settings(entry.cls),
    }


def _settings(cls: type[Any]) -> list[dict[str, Any]]:
    from laconic.settings import bounds_of

    bounds, hints = bounds_of(cls), get_type_hints(cls)
    return [
        {
            "name": field.name,
            "type": _type_text(hints[field.name]),
            "default": None if field.default is MISSING else field.default,
            "low": bounds[field.name].low,
            "high": bounds[field.name].high,
            "help": bounds[field.name].help,
        }
        for field in fields(cls)
        if field.name in bounds
    ]


def _type_text(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_type_text, get_args(hint)))
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return "none" if hint is type(None) else names.get(hint, getattr(hint, "__name__", str(hint)))


def _show_one(entry: Entry, *, as_json: bool) -> None:
    row = _row(entry)
    if as_json:
        show_json(row)
        return
    from laconic.report.terminal import plain_table

    cells = [
        [s["name"], s["type"], str(s["default"]), _span(s["low"], s["high"]), s["help"]]
        for s in row["settings"]
    ]
    headings = ["setting", "type", "default", "bounds", "meaning"]
    summary = entry.summary.replace("``", "")
    click.echo(f"{entry.name} ({entry.family}): {summary}\nSource: {entry.source}\n")
    show(plain_table("Settings", headings, cells, text_columns=5))


def _span(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"{low} or more"
    return f"up to {high}" if low is None else f"{low} to {high}"
