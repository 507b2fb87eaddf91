"""``laconic compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    budget_text,
    command_line,
    data_options,
    json_option,
    load,
    prepare,
    run_options,
    weights_option,
)
from laconic.cli._output import note, show, show_json

if TYPE_CHECKING:
    from laconic.plan import Plan

EXAMPLES = (
    "laconic compress ./my-model --recipe w4 --out small",
    "laconic compress ./my-model --recipe w4-gptq --data wikitext2 --out small",
    "laconic compress net:build --weights net.safetensors --recipe deep-compression "
    "--data digits --budget 20x --out small",
    "laconic compress ./my-model --recipe 2-4-w4 --dry-run",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.option("--recipe", required=True, help="A built-in recipe or a .yaml file.")
@click.option(
    "--budget",
    metavar="SIZE",
    callback=budget_text,
    help="Largest size on disk: 1.5MB, 8x smaller, or 3bits a weight.",
)
@weights_option
@data_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace what stands at --out.")
@click.option("--resume", is_flag=True, help="Go on where a stopped run left off.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its predicted bytes; do nothing.")
@click.option("--latency", is_flag=True, help="Measure latency too, in turns with the original.")
@click.option("--baselines", is_flag=True, help="Measure plain rounding at several bits too.")
@run_options
@json_option
def command(
    model: str,
    recipe: str,
    budget: str | None,
    weights: Path | None,
    data: str | None,
    data_options: dict[str, Any],
    out: Path | None,
    force: bool,
    resume: bool,
    dry_run: bool,
    latency: bool,
    baselines: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Compress MODEL by a recipe, down to a budget.

    Writes a folder with the model, report.json and report.html, and prints original beside
    compressed. A run that is stopped goes on with --resume and ends in the same bytes.
    """
    if not dry_run and out is None:
        raise click.UsageError("--out FOLDER is needed (or --dry-run).")
    from laconic.files import refuse_existing
    from laconic.modelspec import hub_folder
    from laconic.recipe import Recipe

    prepare(seed, threads, device)
    plan_of = Recipe.load(recipe)
    if out is not None and not resume and not dry_run:
        refuse_existing(out, force=force)
    loaded, task, _ = load(model, weights, data, data_options, seed)
    if dry_run:
        from laconic.plan import make_plan

        _show_plan(make_plan(loaded, plan_of), as_json=as_json)
        return
    from laconic.pipeline import compress
    from laconic.progress import progress_on
    from laconic.report import to_json, write
    from laconic.report.terminal import final_table, steps_table

    context = click.get_current_context()
    result = compress(
        loaded,
        plan_of,
        task,
        out=out,
        budget=budget,
        device=device,
        seed=seed,
        threads=threads,
        resume=resume,
        force=force,
        latency=latency,
        baselines=baselines,
        source=hub_folder(model),
        progress=progress_on(),
    )
    lines = (command_line(context), f"laconic verify {out}", f"laconic inspect {out}")
    report = result.report.model_copy(update={"commands": lines})
    write(report, Path(str(out)))
    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        show(steps_table(report), final_table(report))
    note(f"Wrote {out} (open {Path(str(out)) / 'report.html'})")


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

    rows = [
        {
            "name": site.name,
            "kind": site.kind,
            "shape": list(site.shape),
            "steps": list(site.steps),
            "form": site.form.signature,
            "bytes_original": site.original_bytes,
            "bytes_predicted": site.predicted_bytes,
        }
        for site in plan.sites
    ]
    if as_json:
        show_json(
            {
                "sites": rows,
                "rest_bytes": plan.rest_bytes,
                "bytes_original": plan.original_bytes,
                "bytes_predicted": plan.predicted_bytes,
                "unsupported": plan.unsupported,
            }
        )
        return
    cells = [
        [
            site.name,
            " then ".join(site.steps) or "left alone",
            site.form.signature,
            " x ".join(map(str, site.shape)),
            format_bytes(site.original_bytes),
            format_bytes(site.predicted_bytes),
        ]
        for site in plan.sites
    ]
    headings = ["weight", "steps", "form", "shape", "original", "predicted"]
    show(plain_table("Plan", headings, cells, text_columns=3))
    for name, reason in plan.unsupported.items():
        show(f"left alone: {name}: {reason}")
    show(
        f"Predicted: {format_bytes(plan.original_bytes)} -> {format_bytes(plan.predicted_bytes)} "
        f"before entropy coding ({format_bytes(plan.rest_bytes)} are biases, norms and the like)."
    )
