"""One stage: a policy proposes children, the lab judges them, REINFORCE improves the policy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.budget.policy import Policy, PolicySpec, Reinforce
from laconic.errors import BudgetError, ConfigError
from laconic.files import write_atomic
from laconic.progress import NullProgress, Progress
from laconic.weights.students.lab import Child, Lab
from laconic.weights.students.reward import INVALID, Sized
from laconic.weights.students.spaces import Space, Stage


@dataclass
class StageResult:
    """What a stage came to.

    Attributes:
        stage: Its name.
        best: The child of the highest reward among those that keep the limits.
        reward: Its reward without limits.
        history: A row for each iteration: rewards, their mean, baseline, entropy of a decision,
            the children's keys and actions, how many of their architectures were
            new, how many kept the limits.
        policy: The trained policy.
        children: Children of the stage by key.
    """

    stage: Stage
    best: Child
    reward: float
    history: list[dict[str, Any]]
    policy: Policy | None
    children: dict[str, Child] = field(default_factory=dict)


def run_stage(
    lab: Lab,
    space: Space,
    stage: Stage,
    *,
    iterations: int,
    rollouts: int,
    policy: PolicySpec,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    start: Child | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Search one stage; goes on from where an earlier run of the lab's folder stopped.

    Args:
        lab: Trains and judges.
        space: What is decided.
        stage: Its name, for files and reports.
        iterations: Updates of the policy.
        rollouts: Children sampled for an update.
        policy: Which policy and how it learns.
        seed: Source of the policy's weights and of what it samples.
        weights: What children inherit, where they do.
        start: What the stage starts from, where that is a child: it may be the best too.
        progress: Where progress is shown.

    Raises:
        BudgetError: No child can keep, or kept, the limits; says how near they came.
        ConfigError: The checkpoint belongs to another search.
    """
    _check_least(lab, space)
    blueprint = space.network.blueprint
    base = None
    if lab.reward.ratio_to == "base":
        base = lab._sized(blueprint.params, blueprint.macs, blueprint.spec)
    learner = Reinforce.start(policy, space.decisions, seed=seed)
    path = None if lab.folder is None else lab.folder / f"{stage}.pt"
    settings = [stage, rollouts, seed, str(learner.state()["spec"]), blueprint.spec.to_json()]
    history = _take_up(path, settings, learner) if path and path.exists() else []
    shown = progress or NullProgress()
    bar = shown.start(stage, iterations)
    shown.advance(bar, len(history))
    children = _children(lab, history, start)
    while len(history) < iterations:
        number, actions = len(history), learner.sample(space.decisions, rollouts)
        made = lab.judge(space, actions.tolist(), base=base, iteration=number, weights=weights)
        row = _row(lab, made, children, base, stage=stage, number=number)
        row["baseline"] = learner.baseline
        row["entropy"] = learner.entropy(space.decisions, actions)
        _remember(children, made)
        history.append(row)
        learner.update(space.decisions, actions, torch.tensor(row["rewards"]))
        _write(path, settings, learner, history)
        shown.advance(bar, note=f"reward {row['mean']:.3f}")
    shown.finish(bar)
    best = best_of(lab, children, base)
    return StageResult(stage, best, lab.plain(best, base), history, learner.policy, children)


def _children(
    lab: Lab, history: Sequence[Mapping[str, Any]], start: Child | None
) -> dict[str, Child]:
    """Return the children that a history speaks of, as the lab holds them."""
    children: dict[str, Child] = {} if start is None else {start.key: start}
    held = {child.key: child for child in lab.children}
    for row in history:
        pairs = zip(row["keys"], row["actions"], strict=True)
        _remember(children, [replace(held[k], told=told) for k, told in pairs if k in held])
    return children


def _row(
    lab: Lab,
    made: Sequence[Child],
    known: Mapping[str, Child],
    base: Sized | None,
    *,
    stage: Stage,
    number: int,
) -> dict[str, Any]:
    """Return what one iteration made, as plain values."""
    rewards = [lab.value(child, number, base) for child in made]
    return {
        "stage": stage,
        "iteration": number,
        "rewards": rewards,
        "mean": sum(rewards) / len(rewards),
        "keys": [child.key for child in made],
        "new": len({child.key for child in made} - {"", *known}),
        "actions": [dict(child.told) for child in made],
        "kept": sum(lab.keeps_limits(child) for child in made),
    }


def best_of(lab: Lab, children: Mapping[str, Child], base: Sized | None = None) -> Child:
    """Return the child of the highest reward among those that keep the limits.

    Raises:
        BudgetError: None does; says how near they came.
    """
    valid = [c for c in children.values() if lab.plain(c, base) > INVALID]
    kept = [c for c in valid if lab.keeps_limits(c)]
    if kept:
        return min(kept, key=lambda c: (-lab.plain(c, base), c.size and c.size.params, c.key))
    sizes = [c.size.params for c in valid if c.size is not None]
    rates = [c.accuracy for c in valid if c.accuracy is not None]
    near = (
        f"the smallest has {min(sizes)} parameters, the best accuracy is {max(rates):.4f}"
        if sizes and rates
        else "none was valid and smaller than the teacher"
    )
    raise BudgetError(
        f"students: no child keeps max_params={lab.reward.max_params}, max_cost="
        f"{lab.reward.max_cost}, min_accuracy={lab.reward.min_accuracy}: of {len(children)} "
        f"architectures {near}. Loosen the limits, search longer, or keep fewer units."
    )


def smallest(lab: Lab, space: Space) -> Sized | None:
    """Return what the smallest child costs, where even that breaks the limits on size."""
    if lab.reward.max_params is None and lab.reward.max_cost is None:
        return None
    _, child = lab._draft(space, space.least())
    broken = child.size is not None and not lab.reward.keeps_limits(child.size, 1.0)
    return child.size if broken else None


def _check_least(lab: Lab, space: Space) -> None:
    """Raise BudgetError where even the smallest child is larger than the limits allow."""
    least = smallest(lab, space)
    if least is not None:
        raise BudgetError(
            f"students: the smallest child has {least.params} parameters and cost "
            f"{least.cost:g}; max_params={lab.reward.max_params} and max_cost="
            f"{lab.reward.max_cost} cannot be kept. Loosen them, or keep fewer units."
        )


def _remember(children: dict[str, Child], made: list[Child]) -> None:
    for child in made:
        if child.key and child.accuracy is not None:
            children.setdefault(child.key, child)


def _write(
    path: Path | None, settings: list[Any], learner: Reinforce, history: list[dict[str, Any]]
) -> None:
    if path is None:
        return
    content = {"settings": settings, "learner": learner.state(), "history": history}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def _take_up(path: Path, settings: list[Any], learner: Reinforce) -> list[dict[str, Any]]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        same = held["settings"] == settings
        history: list[dict[str, Any]] = held["history"]
    except Exception as error:  # a damaged file fails in many ways, all with one remedy
        raise ConfigError(
            f"students: {path.name} in the resume folder cannot be read ({type(error).__name__}). "
            "Remove it to start the stage again."
        ) from error
    if not same:
        raise ConfigError(
            f"students: {path.name} in the resume folder belongs to another search. Give its "
            "settings, or another folder."
        )
    learner.load_state(held["learner"])
    return history
