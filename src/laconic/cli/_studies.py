"""Finds the studies, and shows what one found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laconic.errors import ConfigError, nearest

if TYPE_CHECKING:
    from laconic.studies import Study


def find_studies() -> dict[str, Study]:
    """Return every study by its name: modules of ``laconic.studies`` that hold one."""
    package = importlib.import_module("laconic.studies")
    found: dict[str, Study] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if not entry.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            held = (item for item in vars(module).values() if isinstance(item, package.Study))
            found |= {study.name: study for study in held}
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


def show_findings(result: Mapping[str, Any]) -> None:
    """Print the tables of a study's result, its bars last."""
    from laconic.cli._output import show
    from laconic.report import words
    from laconic.report.terminal import plain_table

    def text(value: Any) -> str:
        return words.number(value) if isinstance(value, float) else str(value)

    for section in result["figures"].values():
        rows = section["rows"]
        headings = list(rows[0]) if rows else []
        cells = [[text(row[key]) for key in headings] for row in rows]
        if rows:
            show(plain_table(section["title"], headings, cells, text_columns=1))
        for key, value in section["facts"].items():
            show(f"{key}: {text(value)}")
    bars = [
        [
            bar["name"],
            f"{'below' if bar.get('strict') else 'at most'} {text(bar['limit'])}",
            text(bar["value"]),
            "passed" if bar["passed"] else "falls short",
        ]
        for bar in result["bars"]
    ]
    show(plain_table(result["claim"], ["bar", "limit", "value", "result"], bars, text_columns=2))
    for warning in result["warnings"]:
        show(f"warned {warning['count']} times: {warning['text']}")
