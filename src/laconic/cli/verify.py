"""``laconic verify``."""

from __future__ import annotations

from pathlib import Path

import click

from laconic.cli._group import Command
from laconic.cli._options import FOLDER, json_option
from laconic.cli._output import plain, show_json

EXAMPLES = ("laconic verify small", "laconic verify small --json")


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Check every file, checksum and tensor of the compressed model in FOLDER.

    Exit code 1 where anything is damaged, with the file, the tensor and the reason.
    """
    from laconic import artifact

    checks = artifact.verify(folder)
    if as_json:
        show_json({"folder": str(folder), "checks": checks})
        return
    for check in checks:
        held = plain(check)
        text = held if isinstance(held, str) else ": ".join(map(str, held.values()))
        click.echo(f"ok  {text}")
    click.echo(f"{len(checks)} checks passed.")
