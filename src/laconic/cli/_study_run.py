"""``laconic study run``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from laconic.cli._group import Command
from laconic.cli._options import prepare, run_options
from laconic.cli._output import note, plain, show_json

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
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Print JSON instead of tables; with FILE, save the result there and not in --results.",
)
def command(
    name: str,
    scale: str,
    results: Path,
    seed: int,
    threads: int | None,
    device: str,
    json_to: str | None,
) -> None:
    """Run the study of this NAME and say whether it passes its bar; exit code 1 where not."""
    from laconic.cli._studies import get_study, show_findings
    from laconic.files import write_atomic
    from laconic.progress import progress_on

    study = get_study(name)
    prepare(seed, threads, device)
    found = study.run(scale=scale, seed=seed, device=device, progress=progress_on())
    kept = json_to if json_to not in (None, "-") else None
    path = Path(kept) if kept else results / f"{study.name}.{scale}.json"
    write_atomic(path, json.dumps(plain(found), indent=2) + "\n")
    note(f"Wrote {path}")
    if json_to == "-":
        show_json(found)
    else:
        show_findings(found)
    if not found["passed"]:
        missed = [bar["name"] for bar in found["bars"] if not bar["passed"]]
        note(f"laconic: {study.name} falls short at scale {scale}: {', '.join(missed)}.")
        raise click.exceptions.Exit(1)
