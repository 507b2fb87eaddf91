"""``laconic compare``."""

from __future__ import annotations

from pathlib import Path

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import note, show, show_json

EXAMPLES = (
    "laconic compare small-w4 small-gptq",
    "laconic compare runs/* --html compare.html",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="RUN..."
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the table and the plot.",
)
@click.option("--force", is_flag=True, help="Replace the file at --html.")
@json_option
def command(runs: tuple[Path, ...], html: Path | None, force: bool, as_json: bool) -> None:
    """Set several runs beside each other, and say whether their bytes are equal.

    Each RUN is a folder that laconic compress wrote, or a report.json. Sizes within 2 % of each
    other count as equal bytes; give the runs the same --budget to get there.
    """
    if len(runs) < 2:
        raise click.UsageError("give at least two runs.")
    from laconic.files import refuse_existing, write_atomic
    from laconic.report import compare_html, comparison, read
    from laconic.report.terminal import compare_table

    if html is not None:
        refuse_existing(html, force=force)
    reports = {name: read(path) for name, path in _names(runs).items()}
    found = comparison(reports)
    if html is not None:
        write_atomic(html, compare_html(reports))
        note(f"Wrote {html}")
    if as_json:
        rows = [
            {"name": run.name, "recipe": run.recipe, "ratio": run.ratio}
            | run.figures.model_dump(exclude_defaults=True)
            for run in found.runs
        ]
        show_json({"equal_bytes": found.equal_bytes, "metric": found.metric, "runs": rows})
        return
    show(compare_table(found), found.sentence)


def _names(runs: tuple[Path, ...]) -> dict[str, Path]:
    """Name each run by its folder; by its whole path where two folders share a name."""
    short = [run.name if run.is_dir() else run.resolve().parent.name for run in runs]
    unique = len(set(short)) == len(short)
    return {(name if unique else str(run)): run for name, run in zip(short, runs, strict=True)}
