"""``laconic study table``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import note, show, show_json
from laconic.errors import ArtifactError


@click.command(
    cls=Command, examples=("laconic study table", "laconic study table --docs docs/studies.md")
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/studies"),
    show_default=True,
    help="Folder that results were saved in.",
)
@click.option(
    "--docs",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the page of all studies, in Markdown.",
)
@json_option
def command(results: Path, docs: Path | None, as_json: bool) -> None:
    """Show the saved results of all studies; one that falls short says so."""
    saved = [_read(path) for path in sorted(results.glob("*.json"))]
    if docs is not None:
        from laconic.files import write_atomic
        from laconic.studies import studies_page

        write_atomic(docs, studies_page(saved))
        note(f"Wrote {docs}")
    if as_json:
        show_json(saved)
        return
    if not saved:
        note(f"No results in {results}; laconic study run NAME saves them there.")
        return
    from laconic.report.terminal import plain_table

    rows = [
        [
            row["study"],
            row["scale"],
            "passed" if row["passed"] else "falls short",
            row["claim"],
        ]
        for row in saved
    ]
    show(plain_table("Studies", ["name", "scale", "result", "claim"], rows, text_columns=4))


_KEYS = {"study", "scale", "passed", "claim"}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(str(path), f"not JSON ({error}); run the study again") from error
    if not isinstance(found, dict) or not set(found) >= _KEYS:
        raise ArtifactError(str(path), "not the result of a study; run the study again")
    return found
