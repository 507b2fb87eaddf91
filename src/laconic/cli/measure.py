"""``laconic measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    data_options,
    json_option,
    load,
    prepare,
    run_options,
    weights_option,
)
from laconic.cli._output import show, show_json

EXAMPLES = (
    "laconic measure small --data digits",
    "laconic measure ./my-model --data wikitext2 --data-option length=512 --limit 64",
    "laconic measure small --original ./my-model --data wikitext2 --json",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@weights_option
@data_options
@click.option("--original", metavar="MODEL", help="Also measure the distance from this model.")
@click.option(
    "--original-weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weights for --original package.module:factory.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use the first examples only.")
@run_options
@json_option
def command(
    model: str,
    weights: Path | None,
    data: str | None,
    data_options: dict[str, Any],
    original: str | None,
    original_weights: Path | None,
    limit: int | None,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the quality of MODEL on held-out data, with 95 % intervals."""
    if data is None:
        raise click.UsageError("--data NAME is needed; laconic measures on held-out data.")
    from laconic import measure
    from laconic.progress import progress_on

    prepare(seed, threads, device)
    loaded, task, _ = load(model, weights, data, data_options, seed)
    if task is None:
        raise click.UsageError("--data NAME is needed.")
    progress = progress_on()
    metrics = measure.evaluate(loaded, task, device=device, limit=limit, progress=progress)
    if original is not None:
        from laconic.modelspec import load_model, require_fit

        reference, _ = load_model(original, original_weights)
        require_fit(reference, task)
        metrics["logit_kl"] = measure.logit_kl(
            reference, loaded, task, device=device, limit=limit, progress=progress
        )
    if as_json:
        show_json({"model": model, "data": data, "metrics": metrics})
        return
    from laconic.report import words
    from laconic.report.model import Figures
    from laconic.report.terminal import plain_table

    figures = Figures(metrics=metrics)
    rows = [
        [words.title(name), words.metric_value(name, m), words.interval(name, m), str(m.n or "")]
        for name in metrics
        if (m := figures.metric(name))
    ]
    headings = ["metric", "value", "95 % interval", "examples"]
    show(plain_table(f"{model} on {data}", headings, rows, text_columns=1))
    classes = [
        [name, words.metric_value("top1", m), words.interval("top1", m), str(m.n or "")]
        for name, m in figures.per_class.items()
    ]
    if classes:
        show(plain_table("By class", ["class", *headings[1:]], classes, text_columns=1))
