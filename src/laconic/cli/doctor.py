"""``laconic doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option, load, prepare, run_options, weights_option
from laconic.cli._output import show, show_json
from laconic.cli._sparsity import sparsity_table

if TYPE_CHECKING:
    from laconic.doctor import Diagnosis, Expectation

EXAMPLES = (
    "laconic doctor ./my-model",
    "laconic doctor net:build --weights net.safetensors --json",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@weights_option
@run_options
@json_option
def command(
    model: str,
    weights: Path | None,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Say what each family of methods can do for MODEL, before any work.

    Every family is fitted once to the actual weights, without data. Sizes are predicted at the
    entropy of the codes; the error is that of the weights, not yet of the model's answers.
    """
    from laconic.doctor import diagnose
    from laconic.progress import progress_on

    prepare(seed, threads, device)
    loaded, _, _ = load(model, weights)
    found = diagnose(loaded.to(device), seed=seed, progress=progress_on())
    if as_json:
        show_json(found)
        return
    _show(model, found)


def _show(model: str, found: Diagnosis) -> None:
    from laconic.report import words
    from laconic.report.terminal import plain_table

    show(
        f"{model}: {words.size(found.original_bytes)} in tensors, {found.sites} weights in "
        f"{found.blocks} blocks hold {words.percent(found.covered)} of it."
    )
    headings = ["family", "setting", "method", "bytes", "ratio", "error", "worst weight"]
    rows = [_row(row) for row in found.expectations]
    show(plain_table("What to expect, without data", headings, rows, text_columns=3))
    if found.sparsity:
        show(sparsity_table(found.sparsity))
    for line in _notes(found):
        show(line)


def _row(row: Expectation) -> list[str]:
    from laconic.report import words

    name, error = row.worst[0] if row.worst else ("", 0.0)
    return [
        row.family,
        row.setting,
        row.method,
        words.size(row.predicted_bytes) if row.judged else words.NOT_MEASURED,
        words.times(row.ratio) if row.judged else words.NOT_MEASURED,
        words.percent(row.error) if row.judged else words.NOT_MEASURED,
        f"{name} {words.percent(error)}" if row.worst else "",
    ]


def _notes(found: Diagnosis) -> list[str]:
    lines = []
    if found.hurt:
        names = ", ".join(f"{name} ({count} settings)" for name, count in found.hurt)
        lines.append(f"Will hurt first: {names}. Exclude them, or give them more bits.")
    for name, others in found.tied.items():
        lines.append(f"Tied: {name} is also {', '.join(others)}; it is stored once.")
    for name, cols in found.odd_widths.items():
        lines.append(
            f"Odd width: {name} has rows of {cols}, which no group from 16 to 128 divides; "
            "use group_size='auto' or 'channel'."
        )
    for name, reason in found.unsupported.items():
        lines.append(f"Left alone: {name}: {reason}.")
    for row in found.expectations:
        if row.judged < row.of - len(row.skipped):
            lines.append(f"{row.setting}: judged on {row.judged} of {row.of} weights.")
        for name, reason in list(row.skipped.items())[:3]:
            lines.append(f"{row.method} refused {name}: {reason}")
    return lines
