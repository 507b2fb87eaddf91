"""``laconic verify``."""

from __future__ import annotations

from pathlib import Path

import click

from laconic.cli._group import Command, one_line
from laconic.cli._options import FOLDER, json_option
from laconic.cli._output import show_json
from laconic.errors import ArtifactError

EXAMPLES = ("laconic verify small", "laconic verify small --json")


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Check every file, checksum and tensor of the compressed model in FOLDER.

    Exit code 1 where anything is damaged, with the file, the tensor and the reason.
    """
    from laconic import artifact

    checks = artifact.verify(folder, strict=False)
    failed = [check for check in checks if not check.passed]
    if as_json:
        show_json({"folder": str(folder), "sound": not failed, "checks": checks})
    else:
        for check in checks:
            mark = "ok" if check.passed else "DAMAGED"
            click.echo(f"{mark:8}{check.name}: {one_line(check.detail)}")
    if failed:
        first = failed[0]
        raise ArtifactError(
            str(folder),
            f"{len(failed)} of {len(checks)} checks failed, first {first.name}: {first.detail}",
        )
