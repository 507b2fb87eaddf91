"""``laconic study table``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import show, show_json
from laconic.errors import ArtifactError


@click.command(cls=Command, examples=("laconic study table", "laconic study table --json"))
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/studies"),
    show_default=True,
    help="Folder that results were saved in.",
)
@json_option
def command(results: Path, as_json: bool) -> None:
    """Show the saved results of all studies; one that falls short says so."""
    saved = [_read(path) for path in sorted(results.glob("*.json"))]
    if as_json:
        show_json(saved)
        return
    from laconic.report.terminal import plain_table

    rows = [
        [
            str(row.get("study", "")),
            str(row.get("scale", "")),
            "passed" if row.get("passed") else "falls short",
            str(row.get("claim", "")),
        ]
        for row in saved
    ]
    show(plain_table("Studies", ["name", "scale", "result", "claim"], rows, text_columns=4))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(str(path), f"not JSON ({error}); run the study again") from error
    if not isinstance(found, dict):
        raise ArtifactError(str(path), "not the result of a study; run the study again")
    return found
