"""``laconic study run``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option, prepare, run_options
from laconic.cli._output import note, plain, show, show_json

EXAMPLES = ("laconic study run eora", "laconic study run eora --scale full --device cuda")


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("name")
@click.option(
    "--scale",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="Minutes on two cores, or the paper's own protocol.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/studies"),
    show_default=True,
    help="Folder that the result is saved in.",
)
@run_options
@json_option
def command(
    name: str,
    scale: str,
    results: Path,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Run the study of this NAME and say whether it passes its bar; exit code 1 where not."""
    from laconic import measure
    from laconic.cli._studies import get_study
    from laconic.files import write_atomic
    from laconic.progress import progress_on

    study = get_study(name)
    prepare(seed, threads, device)
    found = dict(study.run(scale=scale, seed=seed, device=device, progress=progress_on()))
    saved = {
        "study": study.name, "claim": study.claim, "source": study.source, "scale": scale,
        "seed": seed, "device": device, "environment": measure.environment(), **found,
    }  # fmt: skip
    path = results / f"{study.name}-{scale}.json"
    write_atomic(path, json.dumps(plain(saved), indent=2, sort_keys=True) + "\n")
    note(f"Wrote {path}")
    if as_json:
        show_json(saved)
    else:
        _show(study.claim, found)
    if not found.get("passed"):
        note(f"laconic: {study.name} falls short of its bar at scale {scale}.")
        raise click.exceptions.Exit(1)


def _show(claim: str, found: dict[str, object]) -> None:
    from laconic.report.terminal import plain_table

    listed = found.get("rows")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    headings = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(row.get(key, "not measured")) for key in headings] for row in rows]
    show(plain_table(claim, headings, cells, text_columns=1))
    show("Passed." if found.get("passed") else "Falls short.")
