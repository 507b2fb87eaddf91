"""``laconic study list``."""

from __future__ import annotations

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import note, show, show_json


@click.command(cls=Command, examples=("laconic study list",))
@json_option
def command(as_json: bool) -> None:
    """List the studies and the claim of each."""
    from laconic.cli._studies import find_studies

    found = find_studies()
    if as_json:
        show_json([{"name": s.name, "source": s.source, "claim": s.claim} for s in found.values()])
        return
    if not found:
        note("There are no studies yet.")
        return
    from laconic.report.terminal import plain_table

    rows = [[study.name, study.claim, study.source] for study in found.values()]
    show(plain_table("Studies", ["name", "claim", "source"], rows, text_columns=3))
