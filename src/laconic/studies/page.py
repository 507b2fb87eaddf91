"""The page of all studies, made from their saved results and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_HEAD = """\
# Studies

Each study puts a paper's claim to the test. Its bars stand in the code before it runs; one that
falls short says so here. This page is made by `laconic study table --docs docs/studies.md` from
the results that `laconic study run NAME` saved.
"""


def studies_page(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the page in Markdown.

    Args:
        results: What ``Study.run`` gave, in the order of the page.
    """
    held = list(results)
    rows = [
        [f"[{r['study']}](#{_anchor(r)})", str(r["scale"]), _verdict(r), str(r["claim"])]
        for r in held
    ]
    parts = [_HEAD, table(["study", "scale", "result", "claim"], rows)]
    return "\n".join([*parts, *(_study(result) for result in held)])


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]), end="")
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [headings, ["---"] * len(headings), *rows]
    text = [("|" + "|".join(line) + "|") if line[0] == "---" else _row(line) for line in lines]
    return "\n".join(text) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def number(value: Any) -> str:
    """Return a figure with three significant digits; anything else as it is.

    >>> number(0.012345), number(1234.5), number(3), number("RTN"), number(None)
    ('0.0123', '1234', '3', 'RTN', '')
    """
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def _anchor(result: Mapping[str, Any]) -> str:
    return f"{result['study']}-{result['scale']}"


def _verdict(result: Mapping[str, Any]) -> str:
    bars = result["bars"]
    met = sum(bool(bar["passed"]) for bar in bars)
    return f"{'passed' if result['passed'] else '**falls short**'}, {met} of {len(bars)} bars"


def _study(result: Mapping[str, Any]) -> str:
    bars = [
        [
            bar["name"],
            f"{'<' if bar.get('strict') else '≤'} {number(bar['limit'])}",
            number(bar["value"]),
            "passed" if bar["passed"] else "**falls short**",
        ]
        for bar in result["bars"]
    ]
    parts = [
        f"## {_anchor(result)}\n",
        f"{result['claim']} {result['source']}.\n",
        f"Command: `laconic study run {result['study']} --scale {result['scale']} --seed "
        f"{result['seed']}`. {_machine(result)}\n",
        table(["bar", "limit", "value", "result"], bars),
    ]
    return "\n".join([*parts, *(_section(section) for section in result["figures"].values())])


def _machine(result: Mapping[str, Any]) -> str:
    place = result["environment"]
    return (
        f"{number(float(result['seconds']))} s on {result['device']}, "
        f"{place['cpu']['model']}, threads: {place['threads']}, "
        f"torch {place['versions']['torch']}, Python {place['python']}."
    )


def _section(section: Mapping[str, Any]) -> str:
    rows = section["rows"]
    headings = list(rows[0]) if rows else []
    facts = [f"- {key}: {number(value)}" for key, value in section["facts"].items()]
    parts = [f"### {section['title']}\n", f"{section['about']}\n"]
    if rows:
        parts.append(table(headings, [[number(row[key]) for key in headings] for row in rows]))
    if facts:
        parts.append("\n".join(facts) + "\n")
    return "\n".join(parts)
