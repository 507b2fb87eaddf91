"""``laconic inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laconic.cli._group import Command
from laconic.cli._options import FOLDER, json_option, require_artifact
from laconic.cli._output import show, show_json
from laconic.cli._sparsity import sparsity_table

if TYPE_CHECKING:
    from laconic.measure import Sparsity

EXAMPLES = (
    "laconic inspect small",
    "laconic inspect small --sparsity",
    "laconic inspect small --json",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@click.option(
    "--sparsity",
    "with_sparsity",
    is_flag=True,
    help="Measure how sparse what is kept is: PQ Index, Gini, Hoyer.",
)
@json_option
def command(folder: Path, with_sparsity: bool, as_json: bool) -> None:
    """Show what is in the compressed model in FOLDER: files, forms, bits, weight by weight."""
    from laconic import artifact

    require_artifact(folder)
    found = artifact.inspect(folder)
    measured = _measured(folder) if with_sparsity else []
    if with_sparsity:
        found["sparsity"] = [{"name": name, "scope": "layer", **asdict(m)} for name, m in measured]
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
    if measured:
        show(sparsity_table(measured))
    show(plain_table("Files", ["file", "bytes"], files, text_columns=1))
    show(
        f"{words.size(found['deployed_bytes'])} to deploy, {found['weights']:,} weights: "
        f"{words.number(found['bits'])} stored bits a weight, everything included."
    )


def _measured(folder: Path) -> list[tuple[str, Sparsity]]:
    from laconic import artifact, measure

    return [(name, measure.form_sparsity(form)) for name, form in artifact.read_forms(folder)]
