"""``laconic gradients plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laconic.cli._gradients_options import adaptive_option, check_method, settings_option
from laconic.cli._group import Command
from laconic.cli._options import data_options, json_option, load, weights_option
from laconic.cli._output import show, show_json

EXAMPLES = (
    "laconic gradients plan net:build --method dgc",
    "laconic gradients plan ./my-model --method powersgd --set rank=4 --ranks 8 --link 1000",
    "laconic gradients plan net:build --method powersgd --adaptive --data digits",
)
_PROBE_STEPS, _PROBE_BATCH = 10, 32


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@weights_option
@click.option("--method", default="dgc", show_default=True, help="See laconic methods.")
@settings_option
@adaptive_option
@data_options
@click.option(
    "--ranks", type=click.IntRange(2, 4096), default=4, show_default=True, help="Processes."
)
@click.option(
    "--link",
    "links",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    metavar="MBIT",
    default=(100.0, 1000.0),
    show_default=True,
    help="Link speed in Mbit/s for the expected times; may be given again.",
)
@json_option
def command(
    model: str,
    weights: Path | None,
    method: str,
    settings: dict[str, Any],
    adaptive: bool,
    data: str | None,
    data_options: dict[str, Any],
    ranks: int,
    links: tuple[float, ...],
    as_json: bool,
) -> None:
    """Show which tensors of MODEL a method compresses, and the bytes of a training step.

    Bytes are exact. Times are those of rings over such links and leave computing out;
    laconic gradients bench measures. With --adaptive each tensor's setting is the one that
    L-GreCo would choose now, from the gradients of ten batches of the training split.
    """
    if adaptive and data is None:
        raise click.UsageError("--adaptive needs --data NAME: settings follow from gradients.")
    check_method(method, settings)
    loaded, task, _ = load(model, weights, data, data_options)
    state = _state(loaded, method, settings, ranks)
    chosen = _choose(state, loaded, task) if adaptive else {}
    found = planned(state, ranks, links) | chosen
    if as_json:
        show_json({"model": model, **found})
        return
    _show(model, found)


def _state(model: Any, method: str, settings: dict[str, Any], ranks: int) -> Any:
    """Build the state of a method as rank 0 of ``ranks`` would have it."""
    from torch.optim import SGD

    from laconic import registry
    from laconic.gradients import LoopbackGroup

    cls = registry.get(method, wing="gradients").cls
    given = {**settings, "transport": LoopbackGroup(ranks).transport(0)}
    takes_optimizer = "optimizer" in cls.__dataclass_fields__
    optimizer = (SGD(model.parameters(), lr=0.1),) if takes_optimizer else ()
    return cls(model, *optimizer, **given)


def _choose(state: Any, model: Any, task: Any) -> dict[str, Any]:
    """Give each tensor the setting of L-GreCo; return bytes and errors beside the uniform one."""
    from dataclasses import asdict

    from laconic.gradients.planning import Problem, make_plan

    problem = Problem.of(state, gamma=0.5, beta=2.0)
    probes = _probes(model, task, problem.names)
    plan, _ = make_plan(state, problem, probes, alpha=1.0, method="power")
    for name, at in zip(problem.names, plan.choice, strict=True):
        state.set_parameter(name, problem.values[name][at])
    told = asdict(plan)
    del told["choice"]
    return {"adaptive": told}


def _probes(model: Any, task: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the mean gradients of ten batches, by name."""
    import torch

    if task is None or task.train is None:
        raise click.UsageError("--adaptive: the data set has no training split.")
    model.train().zero_grad()
    drawn = torch.Generator().manual_seed(0)
    taken = 0
    for batch in task.train.batches(_PROBE_BATCH, generator=drawn):
        loss = task.compute_loss(task.forward(model, batch), batch)
        torch.autograd.backward(loss)
        taken += 1
        if taken == _PROBE_STEPS:
            break
    named = dict(model.named_parameters())
    return {
        name: torch.zeros_like(named[name])
        if named[name].grad is None
        else named[name].grad.float() / taken
        for name in names
    }


def planned(state: Any, ranks: int, links: tuple[float, ...]) -> dict[str, Any]:
    """Return the state's report for ``ranks`` ranks, with the expected seconds on each link."""
    from laconic.gradients.costs import all_gather_seconds, all_reduce_seconds

    report = state.report()
    by_route: dict[str, int] = {}
    for row in report["tensors"].values():
        by_route[row["route"]] = by_route.get(row["route"], 0) + row["bytes"]
    gathered = by_route.pop("gather", 0)
    reduced = sum(by_route.values())
    times = [
        {
            "link_mbit": link,
            "seconds": all_gather_seconds(gathered, ranks, megabits=link) * bool(gathered)
            + all_reduce_seconds(reduced, ranks, megabits=link) * bool(reduced),
            "dense_seconds": all_reduce_seconds(report["dense_bytes"], ranks, megabits=link),
        }
        for link in links
    ]
    return {"ranks": ranks, "expected": times, **report}


def _show(model: str, found: dict[str, Any]) -> None:
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

    rows = [
        [
            name,
            "x".join(map(str, row["shape"])) or "1",
            row["route"],
            "" if "setting" not in row else f"{row['setting']:g}",
            format_bytes(row["dense_bytes"]),
            format_bytes(row["bytes"]),
            f"{row['dense_bytes'] / max(row['bytes'], 1):.1f}x",
        ]
        for name, row in found["tensors"].items()
    ]
    rows.append(
        ["all", "", "", "", format_bytes(found["dense_bytes"]), format_bytes(found["step_bytes"]),
         f"{found['ratio']:.1f}x"]
    )  # fmt: skip
    headings = ["tensor", "shape", "route", "setting", "dense", "sent", "ratio"]
    title = f"{found['method']} on {model}: one step of one rank"
    show(plain_table(title, headings, rows, text_columns=3))
    if "adaptive" in found:
        told = found["adaptive"]
        show(
            f"L-GreCo: {format_bytes(told['bytes'])} in place of "
            f"{format_bytes(told['uniform_bytes'])} of the uniform setting, error "
            f"{told['error']:.4g} of at most {told['limit']:.4g}"
        )
    times = [
        [f"{t['link_mbit']:g} Mbit/s", f"{t['dense_seconds'] * 1e3:.1f} ms",
         f"{t['seconds'] * 1e3:.1f} ms"]
        for t in found["expected"]
    ]  # fmt: skip
    title = f"Expected transfer of {found['ranks']} ranks in a ring, without computing"
    show(plain_table(title, ["link", "dense", found["method"]], times, text_columns=1))
