"""``laconic compress``."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    budget_text,
    build_options,
    command_line,
    data_options,
    json_option,
    load,
    prepare,
    require_apart,
    require_out,
    run_options,
    weights_option,
)
from laconic.cli._output import note, show, show_json
from laconic.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from laconic.plan import Plan
    from laconic.recipe import Recipe
    from laconic.result import Result
    from laconic.task import Task

EXAMPLES = (
    "laconic compress ./my-model --recipe w4 --out small",
    "laconic compress ./my-model --recipe w4-gptq --data wikitext2 --out small",
    "laconic compress net:build --weights net.safetensors --recipe deep-compression "
    "--data digits --budget 20x --out small",
    "laconic compress ./my-model --recipe w4 --coding smallest --out smaller",
    "laconic compress net:build --weights net.safetensors --recipe sap --data digits --out few",
    "laconic compress ./my-model --recipe 2:4-w4 --dry-run",
)


# Long for its options: click hands over every one of them by name.
@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.option("--recipe", required=True, help="A built-in recipe or a .yaml file.")
@click.option(
    "--budget",
    metavar="SIZE",
    callback=budget_text,
    help="Largest size on disk: 1.5MB, 8x smaller, or 3bits a weight.",
)
@click.option(
    "--coding",
    type=click.Choice(["fast", "smallest"]),
    help="Entropy coding: fast to load, or smallest of all; the recipe's own by default.",
)
@weights_option
@click.option(
    "--initial",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weights from before training, for recipes that rewind; else those that a seeded "
    "package.module:factory builds.",
)
@data_options
@build_options
@run_options
@json_option
def command(
    model: str,
    recipe: str,
    budget: str | None,
    coding: Literal["fast", "smallest"] | None,
    weights: Path | None,
    initial: Path | None,
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
    require_out(out, dry_run=dry_run)
    from laconic.files import refuse_existing
    from laconic.modelspec import hub_folder, initial_model

    prepare(seed, threads, device)
    steps = _recipe(recipe, coding)
    if out is not None and not dry_run:
        require_apart(out, model, weights, initial, recipe)
        if not resume:
            refuse_existing(out, force=force)
    loaded, task, _ = load(model, weights, data, data_options, seed)
    rewinds = any(step.needs_initial for step in steps.steps)
    if initial is not None and not rewinds:
        raise click.UsageError(f"--initial {initial}: no step of {steps.name!r} rewinds to it.")
    first = initial_model(model, initial) if rewinds else None
    if out is None or dry_run:
        _show_plan(loaded, steps, task, budget, as_json=as_json, initial=first is not None)
        return
    from laconic.pipeline import compress
    from laconic.progress import progress_on

    result = compress(
        loaded,
        steps,
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
        initial=first,
        progress=progress_on(),
    )
    _show_result(result, out, as_json=as_json)


def _recipe(name: str, coding: Literal["fast", "smallest"] | None) -> Recipe:
    from laconic.recipe import Recipe

    found = Recipe.load(name)
    return replace(found, coding=coding) if coding else found


def _show_result(result: Result, out: Path, *, as_json: bool) -> None:
    from laconic.report import to_json, write
    from laconic.report.terminal import final_table, steps_table

    lines = (
        command_line(click.get_current_context()),
        shlex.join(["laconic", "verify", str(out)]),
        shlex.join(["laconic", "inspect", str(out)]),
    )
    report = result.report.model_copy(update={"commands": lines})
    write(report, out)
    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        show(steps_table(report), final_table(report))
    note(f"Wrote {out} (open {out / 'report.html'})")


def _show_plan(
    model: nn.Module,
    recipe: Recipe,
    task: Task | None,
    budget: str | None,
    *,
    as_json: bool,
    initial: bool,
) -> None:
    from laconic.plan import make_plan

    plan = make_plan(model, recipe)
    limit = _budget_bytes(model, plan, budget)
    lacking = _lacking(recipe, task, initial)
    if as_json:
        show_json(
            {
                "sites": _plan_rows(plan),
                "rest_bytes": plan.rest_bytes,
                "bytes_original": plan.original_bytes,
                "bytes_predicted": plan.predicted_bytes,
                "budget_bytes": limit,
                "unsupported": plan.unsupported,
                "lacking": lacking,
            }
        )
        return
    _show_plan_table(plan)
    if limit is not None:
        from laconic.units import format_bytes

        show(f"Budget {budget}: at most {format_bytes(limit)} on disk; levels are chosen by a run.")
    for line in lacking:
        show(f"Not yet: {line}")


def _budget_bytes(model: nn.Module, plan: Plan, budget: str | None) -> int | None:
    if budget is None:
        return None
    from laconic import measure
    from laconic.budget import parse_budget

    weights = sum(math.prod(site.shape) for site in plan.sites)
    return parse_budget(budget).bytes_for(
        original_bytes=measure.dense_bytes(model), weights=weights
    )


def _lacking(recipe: Recipe, task: Task | None, initial: bool) -> list[str]:
    """Return what the steps still need before they can run."""
    lines = []
    for number, step in enumerate(recipe.steps, 1):
        checks = (partial(step.check_data, task), partial(step.check_initial, initial))
        for check in checks:
            try:
                check()
            except RecipeError as error:
                lines.append(f"step {number}: {error}")
    return lines


def _plan_rows(plan: Plan) -> list[dict[str, Any]]:
    return [
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


def _show_plan_table(plan: Plan) -> None:
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

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
