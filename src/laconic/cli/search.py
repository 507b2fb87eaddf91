"""``laconic search``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    build_options,
    command_line,
    data_options,
    json_option,
    load,
    pairs,
    prepare,
    require_apart,
    require_out,
    run_options,
    weights_option,
)
from laconic.cli._output import note, show, show_json
from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.search.finish import SearchOutcome
    from laconic.search.plan import UnitPlan

EXAMPLES = (
    "laconic search ./my-model --levels mixed --budget 8x --data wikitext2 --out small",
    "laconic search ./my-model --levels depth --budget 25% --data wikitext2 --out shallow",
    "laconic search ./my-model --levels sparsity --budget 70% --method owl --data wikitext2 "
    "--out sparse",
    "laconic search net:build --weights net.safetensors --levels bits --budget 3.0bits "
    "--data digits --generations 100 --workers 4 --out small",
    "laconic search net:build --weights net.safetensors --levels mixed --budget 40ms "
    "--cost latency --data digits --out fast",
    "laconic search ./my-model --levels my-levels.yaml --budget 1.5MB --dry-run",
    "laconic search net:build --weights net.safetensors --levels layers --budget 4x "
    "--data digits --student-option epochs=4 --out student",
)
_METHODS = ("evolve", "dp", "greedy", "random", "uniform", "owl", "policy")
_SHOWN = 24  # units in the table on the terminal


def _budget(_: click.Context, __: click.Parameter, given: str) -> str:
    """Refuse a budget that cannot be read, as wrong usage."""
    from laconic.search.goal import parse_goal

    try:
        parse_goal(given)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
    return given


# Long for its options: click hands over every one of them by name.
@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.option(
    "--levels",
    required=True,
    metavar="KIND",
    help="What may be chosen: bits, sparsity, depth, rank, mixed, a .yaml file of levels, or "
    "layers: a smaller student of a convolutional classifier.",
)
@click.option(
    "--budget",
    required=True,
    metavar="LIMIT",
    callback=_budget,
    help="On disk: 8x smaller, 1.5MB, 3.0bits a weight. 70%: zeros (sparsity), parts removed "
    "(depth), or what remains of --cost. 40ms: with --cost latency.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="evolve",
    show_default=True,
    help="How levels are found; dp and uniform read the table of errors alone.",
)
@click.option(
    "--cost",
    type=click.Choice(["bytes", "macs", "latency"]),
    default="bytes",
    show_default=True,
    help="What the budget counts.",
)
@click.option(
    "--fitness",
    default="kl",
    show_default=True,
    help="What is made small: kl, topk_kl, perplexity, loss, min:METRIC or max:METRIC.",
)
@click.option(
    "--generations", type=click.IntRange(min=0), help="Rounds; 60 by default, by size for depth."
)
@click.option(
    "--offspring",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Candidates of a round.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Data of the last stage in tokens or examples; half of the search data by default, "
    "16384 at most.",
)
@click.option(
    "--families",
    multiple=True,
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATIO",
    help="Also search each family alone at this multiple of the budget; give it again for curves.",
)
@click.option("--examples", type=click.IntRange(min=2), help="Most documents to search on.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Weights to search, as '*mlp*'.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Weights to leave as they are.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that judge candidates.",
)
@click.option("--cluster", metavar="ADDRESS", help="A Ray cluster to judge on, or 'local'.")
@click.option(
    "--coding",
    type=click.Choice(["fast", "smallest"]),
    default="fast",
    show_default=True,
    help="Entropy coding: fast to load, or smallest of all.",
)
@click.option(
    "--student-option",
    "student_options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=pairs,
    help="A setting of --levels layers, such as epochs=4 or stages=removal; may be given again.",
)
@weights_option
@data_options
@build_options
@run_options
@json_option
def command(
    model: str,
    levels: str,
    budget: str,
    method: Literal["evolve", "dp", "greedy", "random", "uniform", "owl", "policy"],
    cost: Literal["bytes", "macs", "latency"],
    fitness: str,
    generations: int | None,
    offspring: int,
    tokens: int | None,
    families: tuple[float, ...],
    examples: int | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    workers: int,
    cluster: str | None,
    coding: Literal["fast", "smallest"],
    student_options: dict[str, Any],
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
    """Search which level each weight of MODEL takes, within a budget.

    Judges whole models on data, compares the winner with one level everywhere on held-out data,
    and builds the better of the two: a folder with the model, assignment.json, report.html and
    search.html. A search that is stopped goes on with --resume and ends in the same answer.
    """
    require_out(out, dry_run=dry_run)
    if levels == "layers":
        from laconic.cli._search_students import search_students

        search_students(click.get_current_context())
        return
    if student_options:
        raise click.UsageError("--student-option goes with --levels layers.")
    from laconic.files import refuse_existing
    from laconic.modelspec import hub_folder
    from laconic.weights.base import Where

    prepare(seed, threads, device)
    if out is not None and not dry_run:
        own = levels if Path(levels).is_file() else None
        require_apart(out, model, weights, own)
        if not resume:
            refuse_existing(out, force=force)
    where = Where(include=include or ("*",), exclude=exclude)
    loaded, task, _ = load(model, weights, data, data_options, seed)
    if out is None or dry_run:
        from laconic.search.plan import plan_search

        rows = plan_search(loaded, levels, task, budget=budget, cost=cost, where=where)
        _show_plan(rows, as_json=as_json)
        return
    from laconic.progress import progress_on
    from laconic.search.run import search
    from laconic.search.settings import Effort

    outcome = search(
        loaded,
        levels,
        task,
        budget=budget,
        method=method,
        cost=cost,
        fitness=fitness,
        effort=Effort(generations=generations, offspring=offspring, tokens=tokens),
        where=where,
        out=out,
        device=device,
        seed=seed,
        threads=threads,
        workers=workers,
        cluster=cluster,
        examples=examples,
        families=families,
        coding=coding,
        resume=resume,
        force=force,
        latency=latency,
        baselines=baselines,
        source=hub_folder(model),
        progress=progress_on(),
    )
    _show_outcome(outcome, out, as_json=as_json)


def _show_plan(rows: list[UnitPlan], *, as_json: bool) -> None:
    if as_json:
        show_json([vars(row) for row in rows])
        return
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

    cells = []
    for row in rows:
        sizes = [size for size in row.levels.values() if size is not None]
        cells.append(
            [
                row.name,
                row.kind,
                str(len(sizes)),
                format_bytes(min(sizes)),
                format_bytes(max(sizes)),
                format_bytes(row.original_bytes),
            ]
        )
    headings = ["unit", "kind", "levels", "smallest", "largest", "as it is"]
    show(plain_table("Search space", headings, cells, text_columns=2))
    names = dict.fromkeys(name for row in rows for name in row.levels)
    show(f"Levels: {', '.join(names)}. Bytes are before entropy coding.")


def _show_outcome(outcome: SearchOutcome, out: Path, *, as_json: bool) -> None:
    from laconic.report import write
    from laconic.report.terminal import final_table, plain_table

    lines = (
        command_line(click.get_current_context()),
        shlex.join(["laconic", "verify", str(out)]),
        shlex.join(["laconic", "inspect", str(out)]),
    )
    report = outcome.result.report.model_copy(update={"commands": lines})
    write(report, out)
    if as_json:
        show_json(outcome.details)
        return
    show(final_table(report))
    counts: dict[str, int] = {}
    for level in outcome.assignment.values():
        counts[level] = counts.get(level, 0) + 1
    rows = [[level, str(count)] for level, count in sorted(counts.items(), key=lambda kv: -kv[1])]
    show(plain_table("Levels taken", ["level", "units"], rows[:_SHOWN], text_columns=1))
    show(outcome.reason)
    note(f"Wrote {out} (open {out / 'search.html'} and {out / 'report.html'})")
