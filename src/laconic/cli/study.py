"""``laconic study``."""

from __future__ import annotations

import click

from laconic.cli._group import LazyGroup

_HERE = "laconic.cli"
COMMANDS = {
    "list": (f"{_HERE}._study_list", "List the studies and the claim of each."),
    "run": (f"{_HERE}._study_run", "Run one study and say whether it passes its bar."),
    "table": (f"{_HERE}._study_table", "Show the results that were saved."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    examples=("laconic study list", "laconic study run eora --scale small", "laconic study table"),
)
def command() -> None:
    """Run the studies: a paper's claim each, with a bar that was set before the run."""
