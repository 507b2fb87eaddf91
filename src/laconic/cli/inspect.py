"""``laconic inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laconic.cli._group import Command
from laconic.cli._options import FOLDER, json_option, require_artifact
from laconic.cli._output import show, show_json

EXAMPLES = ("laconic inspect small", "laconic inspect small --json")


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Show what is in the compressed model in FOLDER: files, forms, bits, weight by weight."""
    from laconic import artifact

    require_artifact(folder)
    found = artifact.inspect(folder)
    if as_json:
        show_json(found)
        return
    from laconic.report import words
    from laconic.report.terminal import plain_table

    sites: list[dict[str, Any]] = list(found["sites"])
    rows = [
        [
            row["name"],
            row["form"],
            " x ".join(map(str, row["shape"])),
            f"{row['weights']:,}",
            words.size(row["bytes_stored"]),
            words.number(row.get("bits")),
            words.number(row.get("entropy_bits")),
        ]
        for row in sites
    ]
    headings = ["weight", "form", "shape", "weights", "stored", "bits a weight", "entropy"]
    files = [[name, words.size(size)] for name, size in found["files"].items()]
    show(plain_table("Weights", headings, rows, text_columns=3))
    show(plain_table("Files", ["file", "bytes"], files, text_columns=1))
    show(
        f"{words.size(found['deployed_bytes'])} to deploy, {found['weights']:,} weights: "
        f"{words.number(found['bits'])} stored bits a weight, everything included."
    )
