"""``laconic search --levels layers``: a student with fewer and smaller layers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laconic.cli._output import note, show, show_json
from laconic.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from laconic.task import Task
    from laconic.weights.students import N2NResult, Reward

_CHILD = {
    "epochs": "epochs", "lr": "lr", "batch_size": "batch_size", "loss": "loss",
    "weight_decay": "weight_decay", "examples": "examples", "temperature": "temperature",
    "alpha": "alpha",
}  # fmt: skip
_FINAL = {"final_epochs": "epochs", "final_lr": "lr"}
_RULES = ("keep", "granularity", "ratios", "min_filters", "padding")
_POLICY = {"policy_lr": "lr", "entropy": "entropy", "init": "init"}
_PLAIN = ("stages", "holdout", "inherit")
OPTIONS = (*_CHILD, *_FINAL, *_RULES, *_POLICY, *_PLAIN)
# Options of the command that mean nothing here: given all the same, they are refused.
_FOREIGN = (
    "fitness", "tokens", "families", "examples", "include", "exclude", "cluster", "coding",
    "latency", "baselines",
)  # fmt: skip


def search_students(context: click.Context) -> None:
    """Search a student within the budget, write it and print what came of it.

    Raises:
        UsageError: An option that does not go with layers, or no data or folder.
        BudgetError: No student keeps the budget.
    """
    given = context.params
    _refuse_foreign(context)
    options = _checked(given["student_options"])
    from laconic.cli._options import load, prepare, require_apart
    from laconic.files import refuse_existing

    prepare(given["seed"], given["threads"], given["device"])
    out: Path | None = given["out"]
    if out is not None and not given["dry_run"]:
        require_apart(out, given["model"], given["weights"])
        if not given["resume"]:
            refuse_existing(out, force=given["force"])
    model, task, _ = load(
        given["model"], given["weights"], given["data"], given["data_options"], given["seed"]
    )
    if task is None:
        raise click.UsageError("--levels layers needs --data: students are trained.")
    if out is None or given["dry_run"]:
        _show_units(model, task, options, as_json=given["as_json"])
        return
    _search(model, task, out, given, options)


def _refuse_foreign(context: click.Context) -> None:
    default = click.core.ParameterSource.DEFAULT
    for name in _FOREIGN:
        if context.get_parameter_source(name) not in (default, None):
            raise click.UsageError(f"--{name} does not go with --levels layers.")
    method = context.params["method"]
    if context.get_parameter_source("method") is not default and method != "policy":
        raise click.UsageError(f"--method {method} does not go with --levels layers; policy does.")


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in OPTIONS:
            raise click.UsageError(
                f"--student-option {name}: unknown.{nearest(name, OPTIONS)} There are: "
                f"{', '.join(OPTIONS)}."
            )
    return options


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the search that the options stand for."""
    from laconic.weights.students import FINAL, ChildTraining, PolicySpec, Rules

    child = {field: options[name] for name, field in _CHILD.items() if name in options}
    final = {f.name: getattr(FINAL, f.name) for f in fields(FINAL)}
    final |= {k: v for k, v in child.items() if k not in ("epochs", "lr", "examples")}
    final |= {field: options[name] for name, field in _FINAL.items() if name in options}
    rules = {name: options[name] for name in _RULES if name in options}
    rules |= {name: tuple(rules[name]) for name in ("keep", "ratios") if name in rules}
    policy = {field: options[name] for name, field in _POLICY.items() if name in options}
    if "init" in policy:
        policy["init"] = Path(policy["init"])
    try:
        made = {
            "child": ChildTraining(**child),
            "final": ChildTraining(**final),
            "rules": Rules(**rules),
            "policy": {
                "removal": PolicySpec(kind="bidirectional", **policy),
                "shrinkage": PolicySpec(kind="autoregressive", **policy),
            },
        }
    except TypeError as error:
        raise ConfigError(f"--student-option: {error}.") from error
    plain = {name: options[name] for name in _PLAIN if name in options}
    if isinstance(plain.get("stages"), str):
        plain["stages"] = (plain["stages"],)
    return {**made, **plain}


def _search(
    model: nn.Module, task: Task, out: Path, given: dict[str, Any], options: dict[str, Any]
) -> None:
    import shutil

    from laconic.progress import progress_on
    from laconic.weights.students import n2n

    work = out.parent / f".{out.name}.work"
    if work.exists() and not given["resume"]:
        if not given["force"]:
            raise ConfigError(
                f"{work.name} is left of a stopped search. Go on with --resume, or start again "
                "with --force."
            )
        shutil.rmtree(work)
    chosen = _settings(options)
    if given["generations"] is not None:
        chosen["iterations"] = [given["generations"]] * len(chosen.get("stages", (1, 2)))
    reward = _reward(model, task, given["budget"], given["cost"])
    found = n2n(
        model,
        task,
        reward=reward,
        rollouts=_rollouts(given),
        workers=given["workers"],
        seed=given["seed"],
        device=given["device"],
        resume=work,
        progress=progress_on(),
        **chosen,
    )
    found.save(out, force=given["force"])
    shutil.rmtree(work)
    _show(found, out, given, reward)


def _rollouts(given: dict[str, Any]) -> int:
    """Return ``--offspring``, or the paper's 5 where the command's own default stands."""
    default = click.core.ParameterSource.DEFAULT
    source = click.get_current_context().get_parameter_source("offspring")
    return 5 if source is default else int(given["offspring"])


def _reward(model: nn.Module, task: Task, text: str, cost: str) -> Reward:
    """Return the reward whose limit is the budget.

    Raises:
        ConfigError: The budget does not go with the cost.
    """
    from laconic import measure
    from laconic.search.goal import parse_goal
    from laconic.weights.students import Reward
    from laconic.weights.students.costs import latency_seconds, stored_bytes
    from laconic.weights.students.units import Network

    goal = parse_goal(text)
    fits = {"bytes": ("bytes",), "macs": ("share",), "latency": ("share", "time")}
    if goal.kind not in fits[cost]:
        raise ConfigError(
            f"budget {text!r} does not go with --cost {cost} and --levels layers: bytes take a "
            "size or a ratio, macs a share such as 30%, latency a share or a time."
        )
    if cost == "bytes":
        weights = sum(p.numel() for p in model.parameters())
        limit = goal.bytes_for(original_bytes=measure.dense_bytes(model), weights=weights)
        return Reward(cost=stored_bytes, max_cost=limit)
    example = _example(task)
    if cost == "macs":
        whole = Network.of(model, example).blueprint.macs
        return Reward(cost="macs", max_cost=goal.value * whole)
    limit_s = goal.value / 1e6 if goal.kind == "time" else goal.value * _time(model, example)
    return Reward(cost=latency_seconds, max_cost=limit_s)


def _time(model: nn.Module, example: Tensor) -> float:
    from laconic.weights.students.costs import latency_seconds

    return latency_seconds(model.eval(), example)


def _example(task: Task) -> Tensor:
    from laconic.weights.students.train import gathered, inputs_of

    if task.train is None or not len(task.train):
        raise ConfigError("--levels layers needs training examples; the data set has none.")
    return next(iter(inputs_of(gathered(task.train)).values()))[:1]


def _show_units(model: nn.Module, task: Task, options: dict[str, Any], *, as_json: bool) -> None:
    from laconic.report.terminal import plain_table
    from laconic.weights.students import extract_units

    rules = _settings(options)["rules"]
    units = extract_units(model, _example(task), keep=rules.keep, granularity=rules.granularity)
    if as_json:
        show_json([vars(unit) for unit in units])
        return
    cells = [
        [u.name, u.kind, str(u.kernel), str(u.stride), str(u.filters), u.fixed or "may go"]
        for u in units
    ]
    headings = ["unit", "kind", "kernel", "stride", "filters", "removal"]
    show(plain_table("Units", headings, cells, text_columns=2))


def _show(found: N2NResult, out: Path, given: dict[str, Any], reward: Reward) -> None:
    from laconic import artifact
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

    sizes = artifact.inspect(out)["files"]
    deployed = sum(size for name, size in sizes.items() if name in artifact.DEPLOYED)
    if given["as_json"]:
        show_json({**found.to_dict(), "bytes": deployed, "budget": reward.max_cost})
        return
    test = found.test or {}
    rows = [
        ["teacher", str(found.teacher.params), str(found.teacher.macs), _share(test, "teacher")],
        ["student", str(found.best.params), str(found.best.macs), _share(test, "student")],
    ]
    headings = ["network", "parameters", "multiply-adds", "accuracy (test)"]
    show(plain_table("Student", headings, rows, text_columns=1))
    trained = len({key for stage in found.stages for key in stage.children})
    show(
        f"{found.teacher.params / found.best.params:.2f}x fewer parameters, "
        f"{format_bytes(deployed)} on disk, the best of {trained} trained students."
    )
    note(f"Wrote {out} (how it was found: {out / 'search' / 'result.json'})")


def _share(test: dict[str, dict[str, Any]], name: str) -> str:
    row = test[name]
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
